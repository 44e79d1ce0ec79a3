"""Residuals in the host's form, and batches in the host's order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from ...cldm_core import Residuals
from ...cldm_core.lllite import LLLiteFeatures
from ...cldm_core.residuals import map_residuals
from ...cldm_core.union import UnionFeatures

HostResiduals = dict[str, list[Tensor | None]]
UNCONDITIONAL = 1
"""The host's number for the negative side in `cond_or_uncond`."""


def to_host(residuals: Residuals) -> HostResiduals:
    """The host's form: lists that its UNet empties from the end.

    Skip connections are asked for from the deepest on, which is encoder order; the encoder's own
    blocks from the first on, which is the reverse.
    """
    return {
        "input": list(reversed(residuals.input)),
        "middle": list(residuals.middle),
        "output": list(residuals.output),
    }


def merged(control: HostResiduals | None, other: HostResiduals | None) -> HostResiduals | None:
    """The sum of two controls in the host's form; neither is changed."""
    if control is None or other is None:
        return other if control is None else control
    return {
        slot: _sums(control.get(slot, []), other.get(slot, []))
        for slot in ("input", "middle", "output")
    }


def previous_control(control: Any, *arguments: Any) -> HostResiduals | None:
    """What the controls before this one in the chain give; the arguments are get_control's."""
    previous = control.previous_controlnet
    return None if previous is None else previous.get_control(*arguments)


def _sums(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    # The host takes items from the end, so lists of different length are aligned there.
    length = max(len(first), len(second))
    a, b = ([None] * (length - len(items)) + items for items in (first, second))
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def conditional_only(
    residuals: Residuals, options: dict[str, Any], batched_number: int
) -> Residuals:
    """The residuals without those of the negative side's rows.

    Where the host doesn't tell the sides apart nothing is left out.
    """
    sides: Sequence[int] = options.get("cond_or_uncond", ())
    if len(sides) != batched_number or UNCONDITIONAL not in sides:
        return residuals
    kept = torch.tensor([side != UNCONDITIONAL for side in sides])

    def without(item: Tensor) -> Tensor:
        if item.shape[0] % batched_number:
            return item
        rows = kept.repeat_interleave(item.shape[0] // batched_number).to(item)
        return item * rows[:, None, None, None]

    return map_residuals(without, residuals)


def rows_of(count: int, batch: int, batched_number: int) -> list[int]:
    """Which of `count` hints each row of a batch gets.

    The host puts `batched_number` prompts behind each other, each with the same pictures; where
    hints and pictures differ in number the hints are cut, or start again from the first.
    """
    pictures = max(1, batch // batched_number)
    return [index % count for index in range(pictures)] * batched_number


@singledispatch
def spread(features: Any, rows: Sequence[int]) -> Any:
    """Encoded hints in the order of a batch's rows; those of one picture stay as they are."""
    raise TypeError(f"{type(features).__name__} is not what a net's encode_hint gives")


@spread.register
def _(features: Tensor, rows: Sequence[int]) -> Tensor:
    return features if features.shape[0] == 1 else features[list(rows)]


@spread.register
def _(features: tuple, rows: Sequence[int]) -> tuple[Tensor, ...]:  # type: ignore[type-arg]
    return tuple(spread(item, rows) for item in features)


@spread.register
def _(features: UnionFeatures, rows: Sequence[int]) -> UnionFeatures:
    return features.map(lambda tensor: spread(tensor, rows))


@spread.register
def _(features: LLLiteFeatures, rows: Sequence[int]) -> LLLiteFeatures:
    return features if features.batch == 1 else features.select(rows)
