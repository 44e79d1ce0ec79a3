"""Residuals in the host's form, and batches in the host's order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor

from ...cldm_core import Residuals
from ...cldm_core.lllite import LLLiteFeatures
from ...cldm_core.union import UnionFeatures

HostResiduals = dict[str, list[Tensor | None]]


def to_host(residuals: Residuals) -> HostResiduals:
    """The host's form: lists that its UNet empties from the end.

    Skip connections are asked for from the deepest on, which is encoder order; the encoder's own
    blocks from the first on, which is the reverse. Transformers count from the start.
    """
    return {
        "input": list(_first_block_last(residuals.input)),
        "middle": list(residuals.middle),
        "output": list(residuals.output),
    }


def from_host(control: Mapping[str, list[Tensor | None]]) -> Residuals:
    """Residuals of the host's form."""
    return Residuals(
        tuple(control.get("output") or ()),
        tuple(control.get("middle") or ()),
        tuple(_first_block_last(control.get("input") or ())),
    )


def _first_block_last(items: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The items of `input` from the last block to the first, or back; a transformer's stay."""
    return items if _tokens(items) else items[::-1]


def _tokens(items: Iterable[Tensor | None]) -> bool:
    """Whether these are a transformer's residuals, (B, tokens, C)."""
    return any(item is not None and item.ndim == 3 for item in items)


def merged(control: HostResiduals | None, other: HostResiduals | None) -> HostResiduals | None:
    """The sum of two controls in the host's form; neither is changed."""
    if control is None or other is None:
        return other if control is None else control
    return {
        slot: _sums(control.get(slot, []), other.get(slot, []))
        for slot in ("input", "middle", "output")
    }


def _sums(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    # UNets take items from the end, so lists of different length are aligned there; transformers,
    # whose residuals are tokens, count from the start.
    length = max(len(first), len(second))
    tokens = _tokens((*first, *second))
    fill = [[None] * (length - len(items)) for items in (first, second)]
    a, b = (
        items + none if tokens else none + items
        for items, none in zip((first, second), fill, strict=True)
    )
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


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
