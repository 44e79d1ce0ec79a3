"""Layers that compute their weights at each call from a file's tensors and a base model's.

This module can be handed to a net as its `ops`. Nothing composed outlives the call, and only the
file's tensors are parameters: the base is never held twice, and what changes in it counts at once.
The order and types of the operations are those of ComfyUI's ControlLoraOps and of its loader of
difference files (comfy/controlnet.py), so that results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .eight_bits import SCALES, is_8_bit, widened
from .errors import CheckpointMismatch, CldmError, FamilyMismatch

Base = Mapping[str, Tensor] | Callable[[str], Tensor]
"""A UNet's weights by its keys: a mapping, or a callable that raises KeyError for unknown keys."""

BASE_PREFIXES = ("", "diffusion_model.", "model.diffusion_model.")
STORED_NAMES = ("weight", "bias", "up", "down")
_PROBE = "input_blocks.0.0.weight"


def base_prefix(weights: Mapping[str, Tensor]) -> str:
    """What stands before the UNet's keys; nothing where they aren't found."""
    return next((prefix for prefix in BASE_PREFIXES if prefix + _PROBE in weights), "")


def _lacks(key: str) -> FamilyMismatch:
    return FamilyMismatch(
        f"The base model has no {key}, which this net builds upon: the base is of another family "
        f"than the one that the net was made for."
    )


class BaseWeights:
    """Looks up a base model's tensors at each use, behind whichever prefix a mapping has.

    A mapping's 8-bit weights with a scale beside them (`.scale_weight`, `.weight_scale`) come
    multiplied with it, in fp32. Raises CldmError for anything that holds no weights by the UNet's
    keys.
    """

    def __init__(self, source: Base) -> None:
        if not isinstance(source, Mapping) and (
            isinstance(source, nn.Module) or not callable(source)
        ):
            raise CldmError(
                f"The base is a {type(source).__name__}, expected a mapping of its UNet's weights "
                f"or a callable that gives them by key: load_control(..., base=...) takes nets and "
                f"paths of files, too."
            )
        self._source = source
        self._prefix = ""
        if isinstance(source, Mapping):
            self._prefix = base_prefix(source)

    def __call__(self, key: str) -> Tensor:
        """The base's own tensor; raises FamilyMismatch where it has none of that name."""
        value = self.get(key)
        if value is None:
            raise _lacks(key)
        return value

    def shape(self, key: str) -> torch.Size:
        """The tensor's shape, without computing it; raises FamilyMismatch where there is none."""
        value = self._stored(key)
        if value is None:
            raise _lacks(key)
        return value.shape

    def has(self, key: str) -> bool:
        """Whether the base has a tensor of that name."""
        return self._stored(key) is not None

    def get(self, key: str) -> Tensor | None:
        """The base's own tensor, None where it has none of that name."""
        value = self._stored(key)
        scale = self._scale(key)
        if value is None or scale is None:
            return value
        return widened(value, scale, key, "The base model")

    def _stored(self, key: str) -> Tensor | None:
        try:
            if isinstance(self._source, Mapping):
                return self._source[self._prefix + key].detach()
            return self._source(key).detach()
        except KeyError:
            return None

    def _scale(self, key: str) -> Tensor | None:
        path, _, name = key.rpartition(".")
        if name != "weight" or not isinstance(self._source, Mapping):
            return None
        names = (f"{self._prefix}{path}.{scale}" for scale in SCALES)
        return next((self._source[name] for name in names if name in self._source), None)

    def __deepcopy__(self, memo: Any) -> BaseWeights:
        # A copied net is bound to the same base: copying that too would hold it twice.
        return self


class Composed(nn.Module):
    """Mixin for a layer of torch.nn: weight and bias are what `take` names, computed when called.

    The weight is the file's or the base's, plus `up` times `down` where the file has these; with
    `difference` the file's numbers are added to the base's.
    """

    up: Tensor | None
    down: Tensor | None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "device": "meta"})
        self.path = ""
        self.base: BaseWeights | None = None
        self.from_base: frozenset[str] = frozenset()
        self.shapes = {
            name: value.shape for name, value in self._parameters.items() if value is not None
        }
        for name in STORED_NAMES:
            self.register_parameter(name, None)

    def take(
        self, path: str, stored: Mapping[str, Tensor], *, twin: bool, difference: bool
    ) -> None:
        """Makes `stored` (by names of STORED_NAMES) the layer's parameters.

        path: the layer's key without the last name; twin: whether the base has the same layer.
        """
        self.path = path
        for name, value in stored.items():
            self.register_parameter(name, nn.Parameter(value, value.is_floating_point()))
        needed = self.shapes if difference else self.shapes.keys() - stored.keys()
        self.from_base = frozenset(needed) if twin else frozenset()

    def composed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in the type and on the device of x."""
        weight = self._parameter("weight", x)
        bias = self._parameter("bias", x) if "bias" in self.shapes else None
        if self.up is None or self.down is None:
            return weight, bias
        up, down = (part.to(x.device, x.dtype).flatten(1) for part in (self.up, self.down))
        # The sum goes into the product's own memory: the base's weight must stay as it is.
        return torch.mm(up, down).reshape(weight.shape).add_(weight), bias

    def _parameter(self, name: str, x: Tensor) -> Tensor:
        own = self._parameters[name]
        if own is not None and name not in self.from_base:
            return own.to(x.device, x.dtype)
        if self.base is None:
            raise CldmError(
                "This net stores only what differs from a base model, and it is bound to none: "
                "call net = net.bind(base) with the weights of the base model's UNet first."
            )
        value = self.base(f"{self.path}.{name}")
        if own is None:
            return value.to(x.device, x.dtype)
        # Summed in the file's type, as the host does; in types of 8 bits nothing can be summed.
        dtype = x.dtype if is_8_bit(own.dtype) else own.dtype
        return (own.to(x.device, dtype) + value.to(x.device, dtype)).to(x.dtype)


class Linear(Composed, nn.Linear):
    """torch.nn.Linear with composed weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.composed(x)
        return F.linear(x, weight, bias)


class Conv2d(Composed, nn.Conv2d):
    """torch.nn.Conv2d with composed weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.composed(x)
        out: Tensor = self._conv_forward(x, weight, bias)
        return out


class GroupNorm(Composed, nn.GroupNorm):
    """torch.nn.GroupNorm with composed weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.composed(x)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LayerNorm(Composed, nn.LayerNorm):
    """torch.nn.LayerNorm with composed weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.composed(x)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def product_shape(path: str, up: Tensor, down: Tensor) -> tuple[int, ...]:
    """The shape of the weight that `up` (out, r[, 1, 1]) times `down` (r, in[, h, w]) is added to.

    Raises CheckpointMismatch, with the layer's path, where the two can't be multiplied.
    """
    fits = up.ndim >= 2 and down.ndim >= 2 and up.numel() and down.numel()
    if not fits or up.flatten(1).shape[1] != down.shape[0]:
        raise CheckpointMismatch(
            f"{path}.up is {tuple(up.shape)} and {path}.down is {tuple(down.shape)}, expected "
            f"(out, rank) and (rank, in): the file is damaged or no Control-LoRA."
        )
    return (up.shape[0], *down.shape[1:])
