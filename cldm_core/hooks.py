"""Functions named on a command line, such as `annotators:canny`.

This is the one place where the core reaches outside itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .errors import CldmError


def named_function(name: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names; raises CldmError where there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise CldmError(
            f"{name!r} names no function: write MODULE:FUNCTION, for example annotators:canny."
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError) as error:
        raise CldmError(f"{name!r} can't be used: {error}.") from error
    if not callable(found):
        raise CldmError(f"{name!r} is not a function.")
    function: Callable[..., Any] = found
    return function
