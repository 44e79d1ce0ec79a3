"""Pictures to hints: the annotators that make the conditioning picture of a ControlNet.

    >>> from annotators import annotate, canny
    >>> hint = canny(picture, low_threshold=50)
    >>> hint = annotate("canny", picture, low_threshold=50)  # the same, by name

ANNOTATORS is the one registry: nodes, command line and tests are made from its records. An
annotator is one file with one function and one `ANNOTATOR` record, listed below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from . import _canny, _mask
from .base import Annotator, AnnotatorError, Param, Picture

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "AnnotatorError",
    "Param",
    "Picture",
    "annotate",
    "canny",
    "mask",
]

canny = _canny.ANNOTATOR
mask = _mask.ANNOTATOR

ANNOTATORS: Mapping[str, Annotator] = {entry.name: entry for entry in (canny, mask)}


def annotate(name: str, image: Picture, /, **params: int) -> Picture:
    """The hint that the annotator called `name` makes of `image`; see `Annotator.__call__`."""
    if name not in ANNOTATORS:
        near = difflib.get_close_matches(name, ANNOTATORS, n=1)
        raise AnnotatorError(
            f"There is no annotator {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
            f" The annotators are: {', '.join(ANNOTATORS)}."
        )
    return ANNOTATORS[name](image, **params)
