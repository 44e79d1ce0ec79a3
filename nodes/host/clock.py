"""Where a sampling is: its noise, its step, and the share of it that is done."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

BISECTIONS = 24
"""Halvings of [0, 1]: enough for the digits of a share of the sampling."""
DIGITS = 6
"""Rounded to these the ends are 0 and 1, so that a schedule which ends in 0 does."""
TOLERANCE = 1e-4
"""How far, in shares of it, a sigma may lie from that of its step: samplers compute them anew."""


class Moment(NamedTuple):
    """The noise of a call, and its step; None where the host doesn't say which steps there are."""

    sigma: float
    step: int | None
    steps: int


class Clock:
    """One sampling's time; sigma_of is the host's function of a percent of the timesteps."""

    def __init__(self, sigma_of: Callable[[float], float]) -> None:
        self.sigma_of = sigma_of
        self._schedule: Tensor | None = None
        self._sign = -1
        self._rising: list[float] = []

    def at(self, t: Tensor, options: dict[str, Any]) -> Moment:
        """The moment of a call with sigmas t (B,)."""
        sigma = float(t[0])
        schedule = options.get("sample_sigmas")
        if schedule is None:
            return Moment(sigma, None, 0)
        if schedule is not self._schedule:
            self._schedule, sigmas = schedule, schedule.tolist()
            # They rise where noise is put into a picture (Flip Sigmas).
            self._sign = 1 if sigmas[-1] > sigmas[0] else -1
            self._rising = [self._sign * value for value in sigmas]
        steps = len(self._rising) - 1
        # Samplers of second order ask between two steps: that belongs to the one before.
        later = bisect_left(self._rising, self._sign * sigma * (1 + self._sign * TOLERANCE))
        return Moment(sigma, min(max(later - 1, 0), max(steps - 1, 0)), steps)

    def share_of_steps(self, now: Moment) -> float | None:
        """The share of the steps that are done, as stable-diffusion-webui counts."""
        return None if now.step is None else now.step / max(now.steps, 1)

    def share_of_timesteps(self, now: Moment) -> float:
        """The share of the noise schedule that is done, from 0 (all noise) to 1 (none).

        Each kind of model has its own way from percent to sigma, and none the way back; it falls
        throughout, so the place is found by halving.
        """
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.sigma_of(middle) > now.sigma else (low, middle)
        return round((low + high) / 2, DIGITS)
