"""Weights stored in narrower number types, of 8 bits too; what doesn't fit is refused."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CldmError
from .dtypes import type_name
from .read import StateDict

BESIDE_8_BITS = torch.float16
"""What norms and biases are stored in where the weights have 8 bits."""


def narrowed(value: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """The tensor in another type; itself where it has that type.

    Raises CldmError where it holds numbers beyond the type's range, which would become infinite.
    """
    if value.dtype == dtype:
        return value
    most = torch.finfo(dtype).max
    if most < torch.finfo(value.dtype).max and value.numel():
        largest = float(value.abs().amax())
        if largest > most:
            advice = "store it scaled, or in fp16" if dtype.itemsize == 1 else "use bf16 or fp32"
            raise CldmError(
                f"{key} has numbers up to {largest:.4g} and {type_name(dtype)} ends at {most:.4g}: "
                f"{advice}."
            )
    return value.to(dtype)


def retyped(state: StateDict, dtype: torch.dtype, *, scaled: bool = False) -> dict[str, Tensor]:
    """All weights in one type.

    In a type of 8 bits only those of two and more dimensions are stored so, norms and biases in
    fp16. With `scaled` each layer's weight fills the type's range and `LAYER.scale_weight` tells
    what to multiply with, in the way of ComfyUI's diffusion models: a marker `scaled_fp8` says so.
    Weights that are no layer's `.weight` stay in fp16 then. ComfyUI's own loader of ControlNets
    (0.3.64) knows no scales, this pack's does. Raises CldmError where numbers don't fit the type.
    """
    if dtype.itemsize > 1:
        return {key: narrowed(value, dtype, key) for key, value in state.items()}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.ndim < 2 or (scaled and not key.endswith(".weight")):
            result[key] = narrowed(value, BESIDE_8_BITS, key)
        elif scaled:
            result[key], scale = _scaled(value.float(), dtype, key)
            result[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            result[key] = narrowed(value, dtype, key)
    if scaled:
        # Two elements tell ComfyUI not to multiply in 8 bits.
        result["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    return result


def _scaled(value: Tensor, dtype: torch.dtype, key: str) -> tuple[Tensor, Tensor]:
    most = torch.finfo(dtype).max
    largest = value.abs().amax() if value.numel() else torch.zeros(())
    if not torch.isfinite(largest):
        raise CldmError(f"{key} holds numbers that are infinite or not numbers: it is damaged.")
    scale = largest / most if largest > 0 else torch.ones(())
    return (value / scale).clamp(-most, most).to(dtype), scale
