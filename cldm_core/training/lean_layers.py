"""A net as training wants it: the same weights, in layers that keep little for the backward pass.

What the layers keep instead is said in frozen.py. With checkpointing, whole blocks keep nothing but
what comes in, and are computed a second time in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ..blocks import (
    BasicTransformerBlock,
    ResBlock,
    SpatialTransformer,
    TimestepEmbedSequential,
    repeated,
)
from .frozen import Recomputed, convolve, gate, norm_type, project, projected_again

M = TypeVar("M", bound=nn.Module)
Swaps = Mapping[type[nn.Module], type[nn.Module]]

HINT_ENCODER = "input_hint_block"
NARROW = 320
"""Transformers up to this wide are computed twice in part: wider ones cost more than they save."""


def lean(net: M, *, checkpointing: bool = False) -> M:
    """A view of a UNet or control net for training.

    It shares all parameters with the net, keys included, and the net stays as it is. Values are
    those of the net to the bit, gradients to rounding. Layers of other classes than torch.nn's,
    those with hooks, and dropout at work are computed as they are. checkpointing: whether blocks
    with anything to train in or before them are computed twice, for the sake of memory.
    """
    return _view(net, CHECKPOINTED if checkpointing else LEAN, HINT_LAYERS)


def plain(net: M) -> M:
    """A view of what `lean` gave, or of any net, in PyTorch's own layers; as there, it stays.

    They keep more for the backward pass and compute nothing twice.
    """
    return _view(net, PLAIN, PLAIN)


class LeanConv2d(nn.Conv2d):
    """A convolution that keeps nothing where its weights are frozen."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self) if self.padding_mode == "zeros" else super().forward(x)


class LeanSequential(nn.Sequential):
    """Layers in a row; norm, SiLU and convolution together keep the norm's input alone."""

    def forward(self, x: Tensor) -> Tensor:
        for norm, silu, layer in _rows(list(self)):
            fused = norm is not None or silu
            x = convolve(x, layer, norm, silu=silu) if fused else layer(x)  # type: ignore[arg-type]
        return x


class CheckpointedSequential(LeanSequential):
    """Layers in a row that keep their input alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not _trains(self, x):
            return super().forward(x)
        out: Tensor = checkpoint(
            super().forward, x, use_reentrant=False, preserve_rng_state=_draws(self)
        )
        return out


class CheckpointedBlock(TimestepEmbedSequential):
    """A block that keeps its input alone."""

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None, size: torch.Size | None = None
    ) -> Tensor:
        # Resampling alone keeps no more than its input anyway. Hooks may be gone when the block is
        # computed again: patches last for one forward.
        whole = isinstance(self[0], ResBlock) and not any(map(_hooked, self.modules()))
        if not whole or not _trains(self, x):
            return super().forward(x, emb, context, size)
        out: Tensor = checkpoint(
            super().forward,
            x,
            emb,
            context,
            size,
            use_reentrant=False,
            preserve_rng_state=_draws(self),
        )
        return out


class LeanSpatialTransformer(SpatialTransformer):
    """A transformer over pixels whose first norm and convolution keep the norm's input alone."""

    def enter(self, x: Tensor) -> Tensor:
        if self.use_linear or not _plain(self.norm, nn.GroupNorm) or not _plain_conv(self.proj_in):
            return super().enter(x)
        return convolve(x, self.proj_in, self.norm)


class LeanTransformerBlock(BasicTransformerBlock):
    """A transformer block whose norms keep their input alone, and whose GEGLU its own."""

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """As BasicTransformerBlock's."""
        if self.disable_self_attn or context is None:
            return super().forward(x, context)
        return self.behind(x, self.mixed(x), context)

    def mixed(self, x: Tensor) -> Tensor:
        """The result of self-attention, in front of its last layer."""
        own = self.attn1
        queries, keys, values = _projected(x, self.norm1, own.to_q, own.to_k, own.to_v)
        return own.attention(queries, keys, values, own.heads)

    def behind(self, x: Tensor, mixed: Tensor, context: Tensor) -> Tensor:
        """What stands behind self-attention."""
        cross = self.attn2
        x = repeated(self.attn1.to_out(mixed) + x, context.shape[0])
        (queries,) = _projected(x, self.norm2, cross.to_q)
        keys, values = cross.to_k(context), cross.to_v(context)
        x = cross.to_out(cross.attention(queries, keys, values, cross.heads)) + x
        return self.fed(x) + x

    def fed(self, x: Tensor) -> Tensor:
        gated, _, last = self.ff.net
        if not _plain_linear(last) or _hooked(self.ff) or _hooked(gated):
            out: Tensor = self.ff(self.norm3(x))
            return out
        (inner,) = _projected(x, self.norm3, cast("nn.Linear", gated.proj))
        return gate(inner, last)


class FrugalTransformerBlock(LeanTransformerBlock):
    """A transformer block that, where it is narrow, keeps its input and self-attention's result.

    All the rest is computed a second time, but for the softmax and the last layer: that takes as
    many multiplications for each number that isn't kept as the block is wide.
    """

    def mixed(self, x: Tensor) -> Tensor:
        if not self._saves(x):
            return super().mixed(x)
        own, norm = self.attn1, cast("nn.LayerNorm", self.norm1)
        layers = [cast("nn.Linear", layer) for layer in (own.to_q, own.to_k, own.to_v)]
        parts = project(x, norm, layers)
        again = partial(projected_again, x, norm, layers, parts[0].dtype, norm_type(x))
        hooks = Recomputed(parts, again)
        with saved_tensors_hooks(hooks.pack, hooks.unpack):
            return own.attention(parts[0], parts[1], parts[2], own.heads)

    def behind(self, x: Tensor, mixed: Tensor, context: Tensor) -> Tensor:
        if not self._saves(x):
            return super().behind(x, mixed, context)
        out: Tensor = checkpoint(
            self._plain_behind, x, mixed, context, use_reentrant=False, preserve_rng_state=False
        )
        return out

    def _plain_behind(self, x: Tensor, mixed: Tensor, context: Tensor) -> Tensor:
        # Of plain layers, as the second time ends before the last one: lean ones would run it.
        x = repeated(self.attn1.to_out(mixed) + x, context.shape[0])
        x = self.attn2(self.norm2(x), context) + x
        out: Tensor = self.ff(self.norm3(x)) + x
        return out

    def _saves(self, x: Tensor) -> bool:
        if x.shape[-1] > NARROW or not _trains(self, x) or any(map(_hooked, self.modules())):
            return False
        return all(type(m) is nn.Linear for m in self.modules() if isinstance(m, nn.Linear))


LEAN: Swaps = {
    nn.Conv2d: LeanConv2d,
    nn.Sequential: LeanSequential,
    SpatialTransformer: LeanSpatialTransformer,
    BasicTransformerBlock: FrugalTransformerBlock,
}
CHECKPOINTED: Swaps = {
    **LEAN,
    BasicTransformerBlock: LeanTransformerBlock,  # its block is computed twice as a whole
    TimestepEmbedSequential: CheckpointedBlock,
}
HINT_LAYERS: Swaps = {nn.Sequential: CheckpointedSequential}
"""Without its convolutions' class: a net tells from the first one's what type it reads."""
PLAIN: Swaps = {
    own: layer for swaps in (LEAN, CHECKPOINTED, HINT_LAYERS) for layer, own in swaps.items()
}


def _view(module: M, swaps: Swaps, hint_swaps: Swaps) -> M:
    """The same module tree once more, over the very same dictionaries of parameters."""
    view = copy.copy(module)
    view.__class__ = swaps.get(type(module), type(module))  # type: ignore[assignment]
    view._modules = {
        name: None
        if child is None
        else _view(child, hint_swaps if name == HINT_ENCODER else swaps, hint_swaps)
        for name, child in module._modules.items()
    }
    return view


def _rows(layers: list[nn.Module]) -> Iterator[tuple[nn.GroupNorm | None, bool, nn.Module]]:
    """The layers, with the norm and the SiLU that a convolution has before it."""
    start = 0
    while start < len(layers):
        end, norm = start, None
        first = layers[start]
        if isinstance(first, nn.GroupNorm) and _plain(first, nn.GroupNorm):
            norm, end = first, start + 1
        silu = end < len(layers) and _plain(layers[end], nn.SiLU)
        end += silu
        while end < len(layers) and _idle(layers[end]):
            end += 1
        if (norm or silu) and end < len(layers) and _plain_conv(layers[end]):
            yield norm, silu, layers[end]
            start = end + 1
        else:
            yield None, False, first
            start += 1


def _projected(x: Tensor, norm: nn.Module, *layers: nn.Module) -> tuple[Tensor, ...]:
    linear = [layer for layer in layers if _plain_linear(layer)]
    if isinstance(norm, nn.LayerNorm) and _plain(norm, nn.LayerNorm) and len(linear) == len(layers):
        return project(x, norm, linear)
    h = norm(x)
    return tuple(layer(h) for layer in layers)


def _plain_linear(layer: object) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and _plain(layer, nn.Linear)


def _plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return type(layer) is kind and not _hooked(layer)


def _plain_conv(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Conv2d, LeanConv2d) or _hooked(layer):
        return False
    return layer.padding_mode == "zeros"


def _hooked(layer: nn.Module) -> bool:
    """Whether somebody watches the layer, or changes what it reads."""
    return bool(
        layer._forward_pre_hooks
        or layer._forward_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


def _idle(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Dropout) and (not layer.training or layer.p == 0)


def _draws(module: nn.Module) -> bool:
    """Whether random numbers are drawn, which must be the same ones the second time."""
    return any(isinstance(m, nn.Dropout) and not _idle(m) for m in module.modules())


def _trains(module: nn.Module, x: Tensor) -> bool:
    """Whether anything of the module is needed for a backward pass."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(weight.requires_grad for weight in module.parameters())
