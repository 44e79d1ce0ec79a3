"""Weights stored in narrower number types, of 8 bits too; what doesn't fit is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from ..control_lora import OWN_PARTS
from ..eight_bits import is_8_bit
from ..errors import CldmError
from .dtypes import require_floating, type_name
from .read import StateDict

BESIDE_8_BITS = torch.float16
"""What norms and biases are stored in where the weights have 8 bits."""
MOST_ZEROED = 0.01
"""Share of a tensor's numbers that may become zero in 8 bits; else it is kept in fp16."""


def narrowed(value: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """The tensor in another type; itself where it has that type.

    Raises CldmError where it holds numbers beyond the type's range, which would become infinite, or
    where the type isn't floating.
    """
    if value.dtype == dtype:
        return value
    require_floating(dtype)
    most = torch.finfo(dtype).max
    if most < torch.finfo(value.dtype).max and value.numel():
        # 8-bit types have no largest number of their own.
        largest = float(value.float().abs().amax())
        if largest > most:
            advice = "store it scaled, or in fp16" if is_8_bit(dtype) else "use bf16 or fp32"
            raise CldmError(
                f"{key} has numbers up to {largest:.4g} and {type_name(dtype)} ends at {most:.4g}: "
                f"{advice}."
            )
    return value.to(dtype)


def retyped(state: StateDict, dtype: torch.dtype, *, scaled: bool = False) -> dict[str, Tensor]:
    """All weights in one type.

    In a type of 8 bits only those of two and more dimensions are stored so, norms and biases in
    fp16. Numbers of a trained net's zero convolutions are mostly too small for these types, so what
    a ControlNet has beyond its base (OWN_PARTS of canonical keys) stays in fp16 too, and any weight
    of which more than MOST_ZEROED would become zero; `kept_wide` names them.

    With `scaled` each layer's weight fills the type's range and `LAYER.scale_weight` tells
    what to multiply with, in the way of ComfyUI's diffusion models: a marker `scaled_fp8` says so.
    Weights that are no layer's `.weight` stay in fp16 then. ComfyUI's own loader of ControlNets
    (0.3.64) knows no scales, this pack's does. Raises CldmError where numbers don't fit the type.
    """
    if not is_8_bit(dtype):
        return {key: narrowed(value, dtype, key) for key, value in state.items()}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim < 2 or (scaled and not key.endswith(".weight")):
            result[key] = narrowed(value, BESIDE_8_BITS, key)
        elif scaled:
            result[key], scale = _scaled(value.float(), dtype, key)
            result[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            result[key] = _unscaled(value, dtype, key)
    if scaled:
        # Two elements tell ComfyUI not to multiply in 8 bits.
        result["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    return result


def kept_wide(state: StateDict) -> tuple[str, ...]:
    """The weights that `retyped` didn't store in 8 bits because too much of them would be lost."""
    return tuple(
        key
        for key, value in state.items()
        if value.ndim >= 2 and not is_8_bit(value.dtype) and not key.startswith(OWN_PARTS)
    )


def _unscaled(value: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    if key.startswith(OWN_PARTS):
        return narrowed(value, BESIDE_8_BITS, key)
    narrow = narrowed(value, dtype, key)
    before, after = (int(numbers.float().count_nonzero()) for numbers in (value, narrow))
    zeroed = before - after > MOST_ZEROED * before
    return narrowed(value, BESIDE_8_BITS, key) if zeroed else narrow


def _scaled(value: Tensor, dtype: torch.dtype, key: str) -> tuple[Tensor, Tensor]:
    most = torch.finfo(dtype).max
    largest = value.abs().amax() if value.numel() else torch.zeros(())
    if not torch.isfinite(largest):
        raise CldmError(f"{key} holds numbers that are infinite or not numbers: it is damaged.")
    scale = largest / most if largest > 0 else torch.ones(())
    return (value / scale).clamp(-most, most).to(dtype), scale
