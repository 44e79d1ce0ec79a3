"""Pictures to hints: the annotators that make the conditioning picture of a ControlNet.

    >>> from annotators import annotate, canny
    >>> hint = canny(picture, low_threshold=50)
    >>> hint = annotate("canny", picture, low_threshold=50)  # the same, by name
    >>> poses = detect_pose(picture)  # OpenPose JSON, which draw_pose draws

ANNOTATORS is the one registry: nodes, command line and tests are made from its records. An
annotator is one file with one function and one `ANNOTATOR` record, listed in GROUPS; every name in
it is a name of this package too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import (
    _animal_pose,
    _blazepose,
    _blur,
    _canny,
    _color_grid,
    _depth_anything,
    _dwpose,
    _face_mesh,
    _grey,
    _hed,
    _inpaint,
    _invert,
    _line_segments,
    _lineart,
    _lineart_anime,
    _lineart_standard,
    _manga_line,
    _mask,
    _midas,
    _mlsd,
    _normal_bae,
    _normal_from_depth,
    _oneformer,
    _openpose,
    _person,
    _pidinet,
    _pyracanny,
    _recolor,
    _salient,
    _scribble,
    _scribble_xdog,
    _segments,
    _shuffle,
    _teed,
    _threshold,
    _tile,
    _uniformer,
    _zoe,
)
from .base import Annotator, AnnotatorError, Choice, Flag, Param, Picture, Weights
from .pose import detect_pose, draw_pose
from .settings import meant

__all__ = [
    "ANNOTATORS",
    "GROUPS",
    "Annotator",
    "AnnotatorError",
    "Choice",
    "Flag",
    "Param",
    "Picture",
    "Weights",
    "annotate",
    "detect_pose",
    "draw_pose",
    "get",
]

GROUPS: Mapping[str, tuple[Annotator, ...]] = {
    "edges and lines": (
        _canny.ANNOTATOR,
        _pyracanny.ANNOTATOR,
        _hed.ANNOTATOR,
        _pidinet.ANNOTATOR,
        _teed.ANNOTATOR,
        _lineart.ANNOTATOR,
        _lineart_anime.ANNOTATOR,
        _manga_line.ANNOTATOR,
        _lineart_standard.ANNOTATOR,
        _scribble.ANNOTATOR,
        _scribble_xdog.ANNOTATOR,
        _mlsd.ANNOTATOR,
        _line_segments.ANNOTATOR,
        _threshold.ANNOTATOR,
        _threshold.BINARY,
        _invert.ANNOTATOR,
    ),
    "depth and normals": (
        _depth_anything.SECOND,
        _depth_anything.ANNOTATOR,
        _midas.ANNOTATOR,
        _zoe.ANNOTATOR,
        _normal_bae.ANNOTATOR,
        _midas.NORMAL,
        _normal_from_depth.ANNOTATOR,
    ),
    "poses and faces": (
        _dwpose.ANNOTATOR,
        _openpose.ANNOTATOR,
        _blazepose.ANNOTATOR,
        _face_mesh.ANNOTATOR,
        _animal_pose.ANNOTATOR,
    ),
    "segments and masks": (
        _segments.ANNOTATOR,
        _oneformer.ANNOTATOR,
        _uniformer.ANNOTATOR,
        _mask.ANNOTATOR,
        _salient.ANNOTATOR,
        _person.ANNOTATOR,
        _inpaint.ANNOTATOR,
    ),
    "colours and tiles": (
        _tile.ANNOTATOR,
        _blur.ANNOTATOR,
        _shuffle.ANNOTATOR,
        _color_grid.ANNOTATOR,
        _grey.ANNOTATOR,
        _recolor.LUMINANCE,
        _recolor.INTENSITY,
    ),
}
"""All records, by what their hints show, as menus and tables have them."""

ANNOTATORS: Mapping[str, Annotator] = {
    record.name: record for group in GROUPS.values() for record in group
}


def get(name: str) -> Annotator:
    """The annotator called `name`; raises AnnotatorError, with the names there are."""
    if name not in ANNOTATORS:
        raise AnnotatorError(
            f"There is no annotator {name!r}{meant(name, ANNOTATORS)}"
            f" The annotators are: {', '.join(ANNOTATORS)}."
        )
    return ANNOTATORS[name]


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
    return get(name)(image, mask=mask, device=device, **params)


def __getattr__(name: str) -> Annotator:
    try:
        return ANNOTATORS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
