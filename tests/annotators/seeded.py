"""Seeded weights for the tests that loop over all annotators: name -> function(give)."""

from collections.abc import Callable
from typing import Any

SEEDED: dict[str, Callable[[Any], None]] = {}
