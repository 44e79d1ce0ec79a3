"""How far a long task is: whoever listens is told, and may stop it by raising.

>>> with told(lambda what, done, total: print(what, done, total)):
...     hints = annotate("canny", pictures)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Listener: TypeAlias = Callable[[str, int, int], None]
"""Called with what is counted (PICTURES, or the name of a file whose bytes come in), how many are
done, and how many there are (0 where that isn't known)."""

PICTURES = "pictures"

_listener: ContextVar[Listener | None] = ContextVar("annotators_listener", default=None)


@contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Tells `listener` of everything that happens inside, in this thread or task."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(what: str, done: int, total: int) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
