"""What a ControlNet adds to a UNet, and pure arithmetic on it: nothing is changed in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn import functional as F

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

    So for a ControlNet z0 .. zn-1 and the middle, for a T2I-Adapter its features. A None takes no
    number in `input`, but one in `output`, which has a place for each of the encoder's blocks.
    Raises ShapeError where the count of numbers differs from the count of residuals.
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


def weigh_rows(residuals: Residuals, factors: Tensor) -> Residuals:
    """Residuals times one factor for each row of the batch; factors: (B,).

    A residual of batch 1 becomes one of batch B only where the factors differ. Keep the factors on
    the CPU: they are compared with each other. Raises ShapeError where a residual has another
    batch.
    """
    if factors.ndim != 1 or not len(factors):
        raise ShapeError(
            f"The factors have shape {tuple(factors.shape)}, expected (B,): one for each row."
        )
    alike = bool((factors == factors[0]).all())

    def weighed(item: Tensor) -> Tensor:
        if item.shape[0] not in (1, len(factors)):
            raise ShapeError(
                f"{len(factors)} factors were given for a batch of {item.shape[0]}: give one for "
                f"each row."
            )
        if alike:
            return item if factors[0] == 1 else item * float(factors[0])
        return item * factors.to(item).reshape(-1, *[1] * (item.ndim - 1))

    return map_residuals(weighed, residuals)


def spread_rows(residuals: Residuals, rows: Sequence[int], batch: int) -> Residuals:
    """Residuals of some rows, in a batch of `batch` rows with zeros elsewhere.

    rows: where row i of the residuals goes; a residual of batch 1 goes to all of them. Raises
    ShapeError where rows and residuals differ in number, or a row isn't in the batch or is named
    twice.
    """
    if len(set(rows)) != len(rows) or not all(0 <= row < batch for row in rows):
        raise ShapeError(
            f"The rows are {list(rows)}, expected different ones from 0 to {batch - 1}."
        )
    if list(rows) == list(range(batch)):
        return residuals

    def spread(item: Tensor) -> Tensor:
        if item.shape[0] not in (1, len(rows)):
            raise ShapeError(
                f"{len(rows)} rows were named for residuals of batch {item.shape[0]}: name one for "
                f"each."
            )
        places = torch.tensor(rows, dtype=torch.long, device=item.device)
        whole = item.new_zeros(batch, *item.shape[1:])
        return whole.index_copy_(0, places, item.expand(len(rows), *item.shape[1:]))

    return map_residuals(spread, residuals)


def resample(residuals: Residuals, sizes: Sequence[tuple[int, int]]) -> Residuals:
    """Residuals at the sizes (h, w) of the UNet's features; see `resampled`.

    sizes: behind each of the encoder's blocks, then the middle, as `masks.residual_sizes` gives
    them. Items of `output` and `input` with the same number belong to the same block. Residuals
    averaged over the picture, (B, C, 1, 1), stay as they are. Raises ShapeError where the count of
    sizes isn't the one of the residuals.
    """
    blocks = len(sizes) - 1
    if len(residuals.output) not in (0, blocks) or len(residuals.input) > blocks:
        raise ShapeError(
            f"{len(sizes)} sizes were given for residuals of "
            f"{max(len(residuals.output), len(residuals.input))} blocks and the middle: give one "
            f"for each, the middle last."
        )

    def over(slot: Slot, wanted: Sequence[tuple[int, int]]) -> Slot:
        return tuple(
            item if item is None or item.shape[2:] == (1, 1) else resampled(item, size)
            for item, size in zip(slot, wanted, strict=False)
        )

    return Residuals(
        over(residuals.output, sizes),
        over(residuals.middle, [sizes[-1]] * len(residuals.middle)),
        over(residuals.input, sizes),
    )


def resampled(item: Tensor, size: tuple[int, int]) -> Tensor:
    """A tensor (B, C, h, w) at another size: averaged where it shrinks, else interpolated.

    One that is so large already is given back as it is.
    """
    if tuple(item.shape[2:]) == tuple(size):
        return item
    if size[0] <= item.shape[2] and size[1] <= item.shape[3]:
        return F.interpolate(item, size, mode="area")
    return F.interpolate(item, size, mode="bilinear", align_corners=False)


def merge(first: Residuals, second: Residuals) -> Residuals:
    """The sum of two nets' residuals; a slot that only one of them fills is taken over."""

    def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return a if b is None else b
        return a + b

    def over(a: Slot, b: Slot) -> Slot:
        return tuple(add(x, y) for x, y in zip_longest(a, b))

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


def relative_change(new: Residuals, old: Residuals) -> float:
    """||new - old|| / ||new|| over all tensors of two sets: the drift where one is used again.

    0 where both are zero, infinite where only `new` is. A place that one of them leaves empty
    counts as zeros. Raises ShapeError where two tensors differ in shape.
    """
    pairs = [
        pair
        for slot in ("output", "middle", "input")
        for pair in zip_longest(getattr(new, slot), getattr(old, slot))
    ]
    change = _length([_difference(a, b) for a, b in pairs])
    length = _length([_norm(a) for a, _ in pairs])
    if length == 0:
        return math.inf if change else 0.0
    return change / length


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return _norm(b if a is None else a)
    if a.shape != b.shape:
        raise ShapeError(
            f"A residual of shape {tuple(a.shape)} is held against one of {tuple(b.shape)}: give "
            f"two sets for the same latents."
        )
    precise = torch.promote_types(a.dtype, torch.float32)
    return _norm(a.to(precise) - b.to(precise))


def _norm(item: Tensor | None) -> Tensor | None:
    if item is None:
        return None
    precise = torch.promote_types(item.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(item, dtype=precise)
    return norm


def _length(norms: list[Tensor | None]) -> float:
    """The length of all tensors together; it waits for the device once."""
    found = [norm for norm in norms if norm is not None]
    return float(torch.linalg.vector_norm(torch.stack(found))) if found else 0.0
