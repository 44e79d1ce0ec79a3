"""Hints made from targets by any function, such as an annotator."""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import CldmError
from ..pipeline import Picture
from .views import resized_hint

Maker = Callable[[Picture], Any]
"""(H, W, 3) uint8 RGB to a hint of the same aspect: (H, W, 3) or (H, W), uint8."""

_MAKING = threading.RLock()


def make_hint(maker: Maker, target: Picture, named: str) -> Picture:
    """The hint (H, W, 3) of a target (H, W, 3); raises CldmError where it is of another kind.

    named: what to call the pair in a message. A hint of another size, as annotators with a
    resolution of their own make them, is brought to the target's.
    """
    try:
        made = np.asarray(alone(maker, target))
    except Exception as error:  # any function may be handed in, and fail in its own way
        raise CldmError(f"{named}: its hint can't be made. {error}") from error
    grey = made.ndim == 2 or (made.ndim == 3 and made.shape[-1] == 1)
    if grey:
        made = np.repeat(made.reshape(*made.shape[:2], 1), 3, axis=-1)
    if made.ndim != 3 or made.shape[-1] != 3 or not made.size or made.dtype != np.uint8:
        raise CldmError(
            f"{named}: its hint was made as {made.dtype} {made.shape}, expected uint8 (H, W, 3)."
        )
    return resized_hint(made, (target.shape[0], target.shape[1]))


def alone(maker: Maker, picture: Picture) -> Any:
    """What a maker gives, called by one thread at a time.

    Networks that makers load have one place in memory, and gain nothing by several threads.
    """
    with _MAKING:
        return maker(picture)


def maker_key(maker: Maker) -> str | None:
    """What names a function, its settings and its source; None where nothing can.

    A function may carry a name of its own in the attribute `key`. Lambdas and functions inside
    functions have none: what they make depends on what is around them. Of what a function uses
    beside itself, such as constants of its module, nothing is told.
    """
    key = getattr(maker, "key", None)
    if isinstance(key, str):
        return key
    if isinstance(maker, functools.partial):
        inner = maker_key(maker.func)
        settings = (maker.args, sorted(maker.keywords.items()))
        # What shows itself by its address is another one in the next run.
        return None if inner is None or " at 0x" in repr(settings) else f"{inner}{settings!r}"
    if inspect.ismethod(maker):
        return None
    return _of_function(maker) if inspect.isroutine(maker) else _of_object(maker)


def _of_function(maker: Any) -> str | None:
    name = f"{maker.__module__}.{maker.__qualname__}"
    nameless = "<" in name or not maker.__module__
    return None if nameless else f"{name}:{_source_digest(maker)}"


def _of_object(maker: Any) -> str | None:
    """An annotator's record: what its settings are left alone, its weights, and its `run`."""
    kind, run = type(maker), getattr(maker, "run", None)
    name = getattr(maker, "name", None)
    if not isinstance(name, str) or not inspect.isroutine(run):
        return None
    inner = _of_function(run)
    try:
        defaults = {key: one.default for key, one in getattr(maker, "settings", {}).items()}
        files = [(one.file, one.revision, one.sha256) for one in getattr(maker, "weights", ())]
    except (AttributeError, TypeError):  # somebody else's object, which has other fields
        return None
    return inner and f"{kind.__module__}.{kind.__qualname__}:{name}:{inner}:{defaults}{files}"


def _source_digest(function: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return "built in"
