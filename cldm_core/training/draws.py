"""Random numbers by name: the same on every machine, with every version of every library."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

Bits = np.ndarray[Any, np.dtype[np.uint64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


def bits(count: int, *key: str | int) -> Bits:
    """`count` random 64-bit numbers that are set by the key alone.

    PCG64's own bits: NumPy keeps those for good, but not what its distributions make of them.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.asarray(
        np.random.PCG64(int.from_bytes(digest, "little")).random_raw(count), dtype=np.uint64
    )


def reals(count: int, *key: str | int) -> Reals:
    """`count` numbers in [0, 1), set by the key alone."""
    return np.asarray((bits(count, *key) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def permutation(count: int, *key: str | int) -> Indices:
    """The numbers from 0 to count - 1 in an order that is set by the key alone."""
    return np.asarray(np.argsort(bits(count, *key), kind="stable"), dtype=np.int64)
