"""Controls that are computed only when the UNet asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from .residuals import HostResiduals

SKIPPERS = ("easycache",)
"""What in the transformer options says that the UNet may be left out at a step."""


def may_be_skipped(options: dict[str, Any]) -> bool:
    """Whether another node may yet leave the UNet out at this step."""
    return any(name in options for name in SKIPPERS)


class LazyResiduals(Mapping[str, list[Tensor | None]]):
    """Residuals in the host's form, computed at the first look."""

    def __init__(self, compute: Callable[[], HostResiduals | None]) -> None:
        self._compute = compute

    @cached_property
    def _found(self) -> HostResiduals:
        return self._compute() or {}

    def __getitem__(self, slot: str) -> list[Tensor | None]:
        return self._found[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
