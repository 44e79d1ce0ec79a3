"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Averages of weights by name, on their devices; a decay of 0 averages nothing.

    The decay is warmed up, min(decay, (1 + step) / (10 + step)), so that early steps don't linger.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = dict(weights) if decay else {}
        self.averages = {key: value.detach().clone() for key, value in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights that step 0, 1, .. left behind."""
        if not self.averages:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.averages.values()),
            [value.detach() for value in self.weights.values()],
            1 - decay,
        )

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The averages stand in the nets while this lasts; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for key, value in self.weights.items():
            value.data, self.averages[key] = self.averages[key], value.data
