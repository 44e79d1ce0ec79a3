"""Pictures in pieces that fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from .errors import AnnotatorError
from .progress import PICTURES, tell

SIGNS = ("out of memory", "allocate", "insufficient memory", "bad alloc", "alloc_failed")
"""What errors about memory say: PyTorch's, onnxruntime's, OpenCV's and NumPy's have no common
class."""

Result = TypeVar("Result")


def in_pieces(work: Callable[[int, int], Result], count: int, at_once: int) -> Iterator[Result]:
    """`work(start, end)` of `count` pictures, `at_once` in each piece; the listener is told.

    A piece that the memory is too small for is tried again with half as many pictures, and so are
    those after it; one picture alone once more after the keeper has let everything go. Raises
    AnnotatorError if it doesn't fit even then.
    """
    start = 0
    while start < count:
        tell(PICTURES, start, count)
        end = min(start + at_once, count)
        found = _if_it_fits(work, start, end)
        # What a failed try held is free only outside of its handler.
        if not found and end - start > 1:
            _make_room(everything=False)
            at_once = (end - start + 1) // 2
            continue
        yield found[0] if found else _alone(work, start, end)
        start = end
    tell(PICTURES, count, count)


def _if_it_fits(work: Callable[[int, int], Result], start: int, end: int) -> tuple[Result] | None:
    try:
        return (work(start, end),)
    except Exception as error:
        if not is_about_memory(error):
            raise
        return None


def _alone(work: Callable[[int, int], Result], start: int, end: int) -> Result:
    _make_room(everything=True)
    try:
        return work(start, end)
    except Exception as error:
        if not is_about_memory(error):
            raise
        raise AnnotatorError(
            f"Picture {end} doesn't fit into the memory of the device, even alone: lower the "
            "resolution, or choose another device."
        ) from error


def is_about_memory(error: Exception) -> bool:
    """Whether memory was too small."""
    said = str(error).lower()
    is_ours = isinstance(error, AnnotatorError)
    return isinstance(error, MemoryError) or (not is_ours and any(sign in said for sign in SIGNS))


def _make_room(*, everything: bool) -> None:
    from .keeper import make_room

    make_room(everything=everything)
