"""Which pairs make which batch: a function of numbers alone, so that any batch can be had at once.

The batch of all processes together is drawn as a whole, and each process takes its rows: two of
them see what one sees with batches twice as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .draws import Indices, bits, permutation, reals


@dataclass(frozen=True)
class Rows:
    """The pairs of a batch. first: how many pairs of the epoch come before it."""

    epoch: int
    first: int
    pairs: Indices
    bucket: int


class Order:
    """Epochs follow one another; each is a permutation of the pairs, drawn from seed and epoch.

    count, batch: how many pairs there are, and how many make a batch. What is left over at an
    epoch's end (in each bucket) is left out in this one; other pairs in the next. Of fewer pairs
    than make a batch some come twice.

    buckets: for each pair its bucket; a batch is of one. shards: for each pair its file. Then
    shards are shuffled, and pairs inside them, and row j of all batches walks through the j-th
    part of what results: so a process reads its own share of the shards, one after another.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        *,
        buckets: Indices | None = None,
        shards: Indices | None = None,
    ) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._buckets = np.zeros(count, np.int64) if buckets is None else buckets
        self._shards = shards
        self._used = np.unique(self._buckets).tolist()
        # A run needs the epoch at hand, and near its end what is fetched ahead.
        self._planned = lru_cache(maxsize=2)(self._plan)

    @property
    def per_epoch(self) -> int:
        """How many batches make an epoch: the same number in each."""
        counts = np.bincount(self._buckets)
        return int(sum(max(1, counts[bucket] // self.batch) for bucket in self._used))

    def bucket_of(self, pair: int) -> int:
        return int(self._buckets[pair])

    def __getitem__(self, index: int) -> Rows:
        epoch, step = divmod(index, self.per_epoch)
        pairs, buckets = self._planned(epoch)
        return Rows(epoch, step * self.batch, pairs[step], int(buckets[step]))

    def _plan(self, epoch: int) -> tuple[Indices, Indices]:
        """The pairs (batches, rows) of an epoch, and the buckets of the batches."""
        order = permutation(self.count, "epoch", self.seed, epoch)
        if self._shards is not None:
            place = bits(int(self._shards.max()) + 1, "shards", self.seed, epoch)
            order = order[np.argsort(place[self._shards[order]], kind="stable")]
        starts = reals(len(self._used), "buckets", self.seed, epoch)
        parts, buckets, when = [], [], []
        for bucket, start in zip(self._used, starts, strict=True):
            members = order[self._buckets[order] == bucket]
            steps = max(1, len(members) // self.batch)
            # np.resize leaves out what is over, and repeats where there are too few.
            parts.append(np.resize(members, steps * self.batch).reshape(self.batch, steps).T)
            buckets.append(np.full(steps, bucket, np.int64))
            when.append((np.arange(steps) + start) / steps)
        # The buckets take turns, each as often as it has batches.
        turns = np.argsort(np.concatenate(when), kind="stable")
        return np.concatenate(parts)[turns], np.concatenate(buckets)[turns]
