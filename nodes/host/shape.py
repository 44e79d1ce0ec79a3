"""How a control acts over the sampling and over the picture: schedule and mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...cldm_core.masks import check_mask
from ...cldm_core.schedule import Schedule
from .residuals import rows_of

BISECTIONS = 24
"""Halvings of [0, 1]: enough for a share of the sampling to seven digits."""


@dataclass(frozen=True, eq=False)
class Shape:
    """What Apply sets beside strength and window; by default nothing.

    schedule: factors of the strength; mask: (M, H, W) in [0, 1], one or one for each picture.
    """

    schedule: Schedule | None = None
    mask: Tensor | None = None

    @property
    def changes_nothing(self) -> bool:
        return self.schedule is None and self.mask is None

    @classmethod
    def of(cls, schedule: str, mask: Tensor | None) -> Shape:
        """From what the nodes' inputs hold; raises CldmError where it doesn't fit."""
        if mask is not None:
            mask = mask if mask.ndim == 3 else mask[None]
            check_mask(mask)
        return cls(Schedule.parse(schedule) if schedule.strip() else None, mask)

    def factor(self, sigma: Tensor, sigma_of: Callable[[float], float] | None) -> float:
        """What the strength is multiplied with at a step; `sigma_of` is the host's of a percent."""
        if self.schedule is None or sigma_of is None:
            return 1.0
        return self.schedule.at(percent_of(float(sigma), sigma_of))

    def mask_for(self, batch: int, batched_number: int) -> Tensor | None:
        """The mask in the order of a batch's rows."""
        if self.mask is None or self.mask.shape[0] == 1:
            return self.mask
        return self.mask[rows_of(self.mask.shape[0], batch, batched_number)]


def percent_of(sigma: float, sigma_of: Callable[[float], float]) -> float:
    """The share of the noise schedule at which the noise is `sigma`, from 0 (all) to 1 (none).

    Each kind of model has its own way from percent to sigma, and none the way back; it falls
    throughout, so the place is found by halving.
    """
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_of(middle) > sigma else (low, middle)
    return (low + high) / 2
