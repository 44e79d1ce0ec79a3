"""Hints for the latents of a call: fitted, cut to areas, and encoded once per sampling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...cldm_core.fitting import crop_hint, fit_hint
from ...cldm_core.hints import HINT_SCALE
from .rows import Area, Batch
from .settings import Settings

Hints = dict[Any, Tensor]
"""Pictures (B, C, H, W) in [0, 1], by their type where the net knows types."""

Size = tuple[int, int]

MOST = 64
"""Encoded hints that are kept: tiles of a large picture have one each."""


class Encoded:
    """Encoded hints, by everything that they depend on; those used last are kept."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[Hints, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        self._entries.clear()

    def get(self, hints: Hints, key: Hashable, encode: Callable[[], Any]) -> Any:
        """What `encode` gives for these hints, from the last time if there was one.

        key: size, crop, frames, device and type.
        """
        whole = (tuple(hints), identity(hints.values()), key)
        if whole not in self._entries:
            # With the hints themselves, as an id may be given again to another tensor.
            self._entries[whole] = hints, encode()
        self._entries.move_to_end(whole)
        while len(self._entries) > MOST:
            self._entries.popitem(last=False)
        return self._entries[whole][1]


def identity(hints: Iterable[Tensor]) -> Hashable:
    """Tells tensors apart, and what was in one before it was written into, while they are kept."""
    # Inference tensors don't count what is written into them.
    return tuple((id(hint), 0 if hint.is_inference() else hint._version) for hint in hints)


def cycled(hint: Tensor, count: int) -> Tensor:
    """`count` hints, from the first again where there are fewer."""
    given = hint.shape[0]
    return hint[:count] if count <= given else hint[[index % given for index in range(count)]]


def distinct_areas(batch: Batch) -> tuple[Area | None, ...]:
    """The areas of a batch, each once, in the order in which they come."""
    return tuple(dict.fromkeys(batch.areas))


def hint_numbers(
    batch: Batch, rows: Iterable[int], areas: Sequence[Area | None], count: int
) -> list[int]:
    """Which of the hints each row gets: `count` for each of the areas, from the first again."""
    places = (batch.place(row) for row in rows)
    return [
        (areas.index(batch.areas[prompt]) if len(areas) > 1 else 0) * count + frame % count
        for prompt, frame in places
    ]


def fitted(
    hint: Tensor,
    areas: Sequence[Area | None],
    sizes: tuple[Size, Size],
    settings: Settings,
    multiple: int,
) -> Tensor:
    """The hints, those of one area behind those of another.

    A conditioning with an area gets that part of the hint which lies over it; one without gets it
    all. sizes: of the latents of the call, and of the whole picture's; multiple: of pixels that
    both sides must have.
    """
    size, whole = sizes
    parts = []
    for area in areas:
        part = hint if area is None else crop_hint(_fit(hint, whole, settings, 1), area)
        parts.append(_fit(part, size, settings, multiple))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fit(hint: Tensor, size: Size, settings: Settings, multiple: int) -> Tensor:
    height, width = (-(-side * HINT_SCALE // multiple) * multiple for side in size)
    return fit_hint(hint, width, height, fit=settings.fit, resampling=settings.resampling)
