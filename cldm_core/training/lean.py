"""A net as training wants it: the same weights, in layers that keep little for the backward pass.

What the layers keep instead is said in frozen.py. With checkpointing, whole blocks keep nothing but
what comes in, and are computed a second time in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..blocks import (
    BasicTransformerBlock,
    CrossAttention,
    ResBlock,
    SpatialTransformer,
    TimestepEmbedSequential,
    repeated,
)
from .frozen import convolve, gate, project

M = TypeVar("M", bound=nn.Module)
Swaps = Mapping[type[nn.Module], type[nn.Module]]

HINT_ENCODER = "input_hint_block"


def lean(net: M, *, checkpointing: bool = False) -> M:
    """A view of a UNet or control net for training.

    It shares all parameters with the net, keys included, and the net stays as it is. Values are
    those of the net to the bit, gradients to rounding. Layers of other classes than torch.nn's,
    those with hooks, and dropout at work are computed as they are. checkpointing: whether blocks
    with anything to train in or before them are computed twice, for the sake of memory.
    """
    view = _view(net, LEAN)
    if checkpointing:
        for module in view.modules():
            if type(module) is TimestepEmbedSequential and isinstance(module[0], ResBlock):
                module.__class__ = CheckpointedBlock
            hint_encoder = module._modules.get(HINT_ENCODER)
            if type(hint_encoder) is LeanSequential:
                hint_encoder.__class__ = CheckpointedSequential
    return view


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
        # Hooks may be gone when the block is computed again: patches last for one forward.
        if not _trains(self, x) or any(map(_hooked, self.modules())):
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
        first, second = self.attn1, self.attn2
        queries, keys, values = _projected(x, self.norm1, first.to_q, first.to_k, first.to_v)
        x = _mixed(first, queries, keys, values) + x
        x = repeated(x, context.shape[0])
        (queries,) = _projected(x, self.norm2, second.to_q)
        x = _mixed(second, queries, second.to_k(context), second.to_v(context)) + x
        return self._fed(x) + x

    def _fed(self, x: Tensor) -> Tensor:
        gated, _, last = self.ff.net
        if not _plain(last, nn.Linear) or _hooked(self.ff) or _hooked(gated):
            out: Tensor = self.ff(self.norm3(x))
            return out
        (inner,) = _projected(x, self.norm3, gated.proj)  # type: ignore[arg-type]
        return gate(inner, last)  # type: ignore[arg-type]


LEAN: Swaps = {
    nn.Conv2d: LeanConv2d,
    nn.Sequential: LeanSequential,
    SpatialTransformer: LeanSpatialTransformer,
    BasicTransformerBlock: LeanTransformerBlock,
}


def _view(module: M, swaps: Swaps) -> M:
    """The same module tree once more, over the very same dictionaries of parameters."""
    view = copy.copy(module)
    view.__class__ = swaps.get(type(module), type(module))  # type: ignore[assignment]
    view._modules = {
        name: None if child is None else _view(child, _within(name, swaps))
        for name, child in module._modules.items()
    }
    return view


def _within(name: str, swaps: Swaps) -> Swaps:
    """The swaps inside a child: a net tells from its hint encoder's first layer what it reads."""
    if name != HINT_ENCODER:
        return swaps
    return {old: new for old, new in swaps.items() if old is not nn.Conv2d}


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
    if isinstance(norm, nn.LayerNorm) and _plain(norm, nn.LayerNorm):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if all(_plain(layer, nn.Linear) for layer in layers):
            return project(x, norm, linear)
    h = norm(x)
    return tuple(layer(h) for layer in layers)


def _mixed(attention: CrossAttention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    out: Tensor = attention.to_out(attention.attention(queries, keys, values, attention.heads))
    return out


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
