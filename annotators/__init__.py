"""Pictures to hints: the annotators that make the conditioning picture of a ControlNet.

    >>> from annotators import annotate, canny
    >>> hint = canny(picture, low_threshold=50)
    >>> hint = annotate("canny", picture, low_threshold=50)  # the same, by name

ANNOTATORS is the one registry: nodes, command line and tests are made from its records. An
annotator is one file with one function and one `ANNOTATOR` record, listed below; every name in it
is a name of this package too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import (
    _canny,
    _depth_anything,
    _depth_anything_v2,
    _hed,
    _lineart,
    _lineart_anime,
    _manga_line,
    _mask,
    _mlsd,
    _normal_bae,
    _pidinet,
    _teed,
)
from .base import Annotator, AnnotatorError, Choice, Flag, Param, Picture, Weights
from .settings import meant

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "AnnotatorError",
    "Choice",
    "Flag",
    "Param",
    "Picture",
    "Weights",
    "annotate",
]

_RECORDS: tuple[Annotator, ...] = (
    _canny.ANNOTATOR,
    _mask.ANNOTATOR,
    _hed.ANNOTATOR,
    _pidinet.ANNOTATOR,
    _teed.ANNOTATOR,
    _lineart.ANNOTATOR,
    _lineart_anime.ANNOTATOR,
    _manga_line.ANNOTATOR,
    _mlsd.ANNOTATOR,
    _depth_anything.ANNOTATOR,
    _depth_anything_v2.ANNOTATOR,
    _normal_bae.ANNOTATOR,
)

ANNOTATORS: Mapping[str, Annotator] = {record.name: record for record in _RECORDS}


def annotate(
    name: str,
    image: Picture,
    /,
    *,
    mask: Picture | None = None,
    device: Any = None,
    **params: object,
) -> Picture:
    """The hint that the annotator called `name` makes of `image`; see `Annotator.__call__`."""
    if name not in ANNOTATORS:
        raise AnnotatorError(
            f"There is no annotator {name!r}{meant(name, ANNOTATORS)}"
            f" The annotators are: {', '.join(ANNOTATORS)}."
        )
    return ANNOTATORS[name](image, mask=mask, device=device, **params)


def __getattr__(name: str) -> Annotator:
    try:
        return ANNOTATORS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
