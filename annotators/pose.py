"""Poses by name: who is in a picture, as data, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import _animal_pose, _blazepose, _dwpose, _openpose
from .base import Annotator, Param
from .errors import AnnotatorError
from .keypoints import Frame, frames_from_json, to_json
from .memory import in_pieces
from .pictures import MOST_PIXELS, RGB8, Picture, all_resized, as_uint8, on_white, working_size
from .settings import meant
from .skeleton import draw_all, drawing_size

DETECTORS: Mapping[str, Callable[..., list[Frame]]] = {
    "openpose": _openpose.detect,
    "dwpose": _dwpose.detect,
    "blazepose": _blazepose.detect,
    "animal_pose": _animal_pose.detect,
}
"""Each takes (N, H, W, 3) uint8 and the keywords hands, face and device."""

_RECORDS: Mapping[str, Annotator] = {
    one.ANNOTATOR.name: one.ANNOTATOR for one in (_openpose, _dwpose, _blazepose, _animal_pose)
}

RESOLUTION = 512
KIND = "openpose"


def detect_pose(
    image: Picture,
    *,
    kind: str = KIND,
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    device: Any = None,
    resolution: int = RESOLUTION,
    confidence: bool = False,
) -> list[dict[str, Any]]:
    """Who is in a picture (H, W, 3) or in each of (N, H, W, 3): OpenPose JSON, one for each.

    The points are in pixels of the picture as it was given. kind: one of DETECTORS. body, hands,
    face: what to give; the others stay empty. resolution: the short side at which people are looked
    for; 0 is the picture as it is. confidence: how sure each point is, in place of 1; see
    `keypoints.to_json`. Raises AnnotatorError.
    """
    parts = {"body": body, "hands": hands, "face": face}
    frames = poses_in(image, kind=kind, device=device, resolution=resolution, **parts)
    return [to_json(frame, confidence=confidence) for frame in frames]


def draw_pose(
    poses: Any,
    *,
    width: int = 0,
    height: int = 0,
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    xinsir: bool = False,
) -> RGB8:
    """Poses on black, (N, height, width, 3), as the openpose ControlNets expect them.

    poses: what `detect_pose` gives, or other OpenPose JSON, as a text too. width, height: 0 is what
    the other and the first pose's aspect make it, both 0 is that pose's own size. xinsir: thicker
    sticks. Raises AnnotatorError.
    """
    side = Param(0, 0, MOST_PIXELS, "of the drawing")
    wide, high = (
        int(side.checked(name, value)) for name, value in (("width", width), ("height", height))
    )
    frames = frames_from_json(poses)
    size = drawing_size(frames[0], wide, high)
    return draw_all(frames, size=size, body=body, hands=hands, face=face, xinsir=xinsir)


def poses_in(
    image: Picture,
    *,
    kind: str = KIND,
    body: bool = True,
    hands: bool = True,
    face: bool = True,
    device: Any = None,
    resolution: int = RESOLUTION,
) -> list[Frame]:
    """What `detect_pose` gives, as frames."""
    if kind not in DETECTORS:
        raise AnnotatorError(
            f"There is no pose detector {kind!r}{meant(kind, DETECTORS)} "
            f"The detectors are: {', '.join(DETECTORS)}."
        )
    record = _RECORDS[kind]
    resolution = int(record.settings["resolution"].checked("resolution", resolution))
    pixels = as_uint8(image)
    if pixels.shape[-1] == 4:
        pixels = on_white(pixels)
    pictures = pixels[None] if pixels.ndim == 3 else pixels
    height, width = pictures.shape[1:3]
    size = working_size(height, width, resolution)

    def detect(start: int, end: int) -> list[Frame]:
        piece = all_resized(pictures[start:end], *size)
        return DETECTORS[kind](piece, hands=hands, face=face, device=device)

    pieces = in_pieces(detect, len(pictures), record.at_once(*size, device))
    found = [frame.resized(width, height) for piece in pieces for frame in piece]
    return [frame.only(body=body, hands=hands, face=face) for frame in found]
