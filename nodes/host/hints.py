"""Hints for the latents of a call: fitted, cut to areas, and encoded once per sampling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...cldm_core.fitting import crop_hint, fit_hint
from ...cldm_core.hints import HINT_SCALE
from .rows import Area, Batch
from .settings import Settings

Hints = dict[Any, Tensor]
"""Pictures (B, C, H, W) in [0, 1], by their type where the net knows types."""

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
        whole = (tuple((kind, id(hint), _version(hint)) for kind, hint in hints.items()), key)
        if whole not in self._entries:
            # With the hints themselves, as an id may be given again to another tensor.
            self._entries[whole] = hints, encode()
        self._entries.move_to_end(whole)
        while len(self._entries) > MOST:
            self._entries.popitem(last=False)
        return self._entries[whole][1]


def _version(hint: Tensor) -> int:
    """Changes where a tensor was written into; inference tensors don't count that."""
    return 0 if hint.is_inference() else hint._version


def distinct_areas(batch: Batch) -> tuple[Area | None, ...]:
    """The areas of a batch, each once, in the order in which they come."""
    return tuple(dict.fromkeys(batch.areas))


def fitted(
    hint: Tensor, batch: Batch, size: tuple[int, int], settings: Settings, multiple: int
) -> Tensor:
    """The hints for latents of `size`, those of one area behind those of another.

    A conditioning with an area gets that part of the hint which lies over it. multiple: of pixels
    that both sides must have.
    """
    parts = []
    for area in distinct_areas(batch):
        whole = size if area is None else next(row.size for row in batch.prompts if row)
        part = _fit(hint, whole, settings, multiple if area is None else 1)
        if area is not None:
            part = _fit(crop_hint(part, area), size, settings, multiple)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fit(hint: Tensor, size: tuple[int, int], settings: Settings, multiple: int) -> Tensor:
    height, width = (-(-side * HINT_SCALE // multiple) * multiple for side in size)
    return fit_hint(hint, width, height, fit=settings.fit, resampling=settings.resampling)
