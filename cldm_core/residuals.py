"""What a ControlNet adds to a UNet, and pure arithmetic on it: nothing is changed in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .errors import ShapeError

Slot = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Residuals:
    """Residuals of one evaluation of a control net; None where nothing is added.

    output: z0 .. zn-1 in the order of the encoder's blocks, each added to that block's skip
    connection; middle: one item, added behind the middle block; input: added behind the encoder's
    blocks (T2I-Adapters), empty for a ControlNet.
    """

    output: Slot = ()
    middle: Slot = ()
    input: Slot = ()


def map_residuals(change: Callable[[Tensor], Tensor], residuals: Residuals) -> Residuals:
    """The residuals with `change` applied to every tensor."""

    def over(slot: Slot) -> Slot:
        return tuple(None if item is None else change(item) for item in slot)

    return Residuals(over(residuals.output), over(residuals.middle), over(residuals.input))


def weigh(residuals: Residuals, scales: float | Sequence[float]) -> Residuals:
    """Residuals times one strength, or one number for each: those of input, of output, the middle.

    So for a ControlNet z0 .. zn-1 and the middle, for a T2I-Adapter its features. Places where
    nothing is added take no number in input and one in output, whose places are the encoder's
    blocks. Raises ShapeError where the count of numbers differs from the count of residuals.
    """
    if isinstance(scales, (int, float)):
        return residuals if scales == 1 else map_residuals(lambda item: item * scales, residuals)
    inputs = sum(item is not None for item in residuals.input)
    expected = inputs + len(residuals.output) + len(residuals.middle)
    if len(scales) != expected:
        raise ShapeError(
            f"{len(scales)} scales were given for {expected} residuals: give one for each, the "
            f"middle last."
        )

    def over(slot: Slot, numbers: Sequence[float]) -> Slot:
        return tuple(
            None if item is None else item * s for item, s in zip(slot, numbers, strict=True)
        )

    split = inputs + len(residuals.output)
    numbers = iter(scales[:inputs])
    return Residuals(
        over(residuals.output, scales[inputs:split]),
        over(residuals.middle, scales[split:]),
        tuple(None if item is None else item * next(numbers) for item in residuals.input),
    )


def merge(first: Residuals, second: Residuals) -> Residuals:
    """The sum of two nets' residuals; a slot that only one of them fills is taken over."""

    def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return a if b is None else b
        return a + b

    def over(a: Slot, b: Slot) -> Slot:
        length = max(len(a), len(b))
        pad_a, pad_b = (slot + (None,) * (length - len(slot)) for slot in (a, b))
        return tuple(map(add, pad_a, pad_b))

    return Residuals(
        over(first.output, second.output),
        over(first.middle, second.middle),
        over(first.input, second.input),
    )


def pool(residuals: Residuals) -> Residuals:
    """Each residual averaged over the picture.

    (B, C, 1, 1): what nets with `global_average_pooling` add.
    """
    return map_residuals(lambda item: item.mean(dim=(2, 3), keepdim=True), residuals)


def guess_mode_scales(strength: float, count: int, decay: float = 0.825) -> tuple[float, ...]:
    """strength * decay**(count - 1 - i) for residual i, the middle last.

    This is the guess mode of the original (gradio_canny2image.py).
    """
    return tuple(strength * decay ** (count - 1 - i) for i in range(count))
