"""The number types that weights are stored in: made one, widened where no layer computes in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ..eight_bits import SCALES, is_8_bit, widened
from ..errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint
from .read import StateDict

TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8 (e4m3fn)",
    torch.float8_e5m2: "fp8 (e5m2)",
}
NAMED_TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""What weights can be converted to, by the names that users type."""
_SCALES = tuple(f".{name}" for name in SCALES)
# What such files hold for kernels that multiply in 8 bits.
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER = "scaled_fp8"


def type_name(dtype: torch.dtype) -> str:
    """The type's short name, such as "fp16"."""
    return TYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def require_floating(dtype: Any) -> None:
    """Raises CldmError for what is no floating-point type; None, the stored type, is fine."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    raise CldmError(
        f"Weights were asked for in {dtype!r}, expected a floating-point type such as "
        f"torch.float16."
    )


def require_floating_weights(weights: StateDict, name: str) -> None:
    """Raises UnsupportedCheckpoint where weights are whole or complex numbers, or truth values."""
    for key, value in weights.items():
        if not value.is_floating_point():
            raise UnsupportedCheckpoint(
                f"{name} stores {key} as {type_name(value.dtype)}, expected floating-point "
                f"weights: take an fp16, bf16 or fp32 version of the file."
            )


def common_type(state: StateDict) -> torch.dtype:
    """The type that most numbers of the tensors are stored in; fp32 where there are none."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def is_scaled(state: StateDict) -> bool:
    """Whether weights are stored with scales beside them."""
    return any(key.endswith(_SCALES) for key in state)


def without_scales(state: StateDict) -> dict[str, Tensor]:
    """The weights alone, without the scales and markers of 8-bit files."""
    return {
        key: value
        for key, value in state.items()
        if not key.endswith((*_SCALES, *_UNUSED)) and key != _MARKER
    }


def unified(state: StateDict, dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    """The weights in one floating type, scales multiplied in.

    `dtype` None takes the most common one, and fp32 where that is of 8 bits: no layer computes in
    those. Tensors that have the type already are passed on as they are. A type of 8 bits is for
    hosts that widen at each call; norms and biases stay in the type they are stored in then. Raises
    UnsupportedCheckpoint for whole numbers, CheckpointMismatch for scales that don't fit, and
    CldmError for scaled weights in 8 bits, which would be rounded a second time, or for a `dtype`
    that isn't floating.
    """
    require_floating(dtype)
    scales = {key.rpartition(".")[0]: state[key] for key in state if key.endswith(_SCALES)}
    weights = without_scales(state)
    require_floating_weights(weights, name)
    if dtype is None and weights:
        dtype = common_type(weights)
        dtype = torch.float32 if is_8_bit(dtype) else dtype
    narrow = is_8_bit(dtype)
    if narrow and scales:
        raise CldmError(
            f"{name} has weights of 8 bits with scales, which are multiplied in when it is loaded: "
            f"ask for fp16, bf16 or fp32."
        )
    converted = {
        key: value if narrow and value.ndim < 2 else value.to(dtype)
        for key, value in weights.items()
        if key.rpartition(".")[0] not in scales or not key.endswith(".weight")
    }
    for layer, scale in scales.items():
        key = f"{layer}.weight"
        if key not in weights or not scale.is_floating_point():
            raise CheckpointMismatch(
                f"{name} has a scale for {key}, but no such weight: the file is damaged or was "
                f"cut apart."
            )
        converted[key] = widened(weights[key], scale, key, name).to(dtype)
    return {key: converted[key] for key in weights}
