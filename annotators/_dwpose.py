"""DWPose (Yang et al., 2023): people by YOLOX, then 133 points of each, with hands and face."""

from __future__ import annotations

from typing import Any

from ._openpose import PARTS
from .base import RGB8, Annotator, Weights
from .keeper import session
from .keypoints import Frame
from .pose_simcc import seen_in, whole_bodies
from .pose_yolox import Boxes, boxes_of, letterboxed
from .skeleton import draw_all

REPOSITORY = "yzd-v/DWPose"
REVISION = "1a7144101628d69ee7a3768d1ee3a094070dc388"

PEOPLE = Weights(
    repository=REPOSITORY,
    file="yolox_l.onnx",
    revision=REVISION,
    bytes=216746733,
    sha256="7860ae79de6c89a3c1eb72ae9a2756c0ccfbe04b7791bb5880afabd97855a411",
    licence="Apache-2.0",
    commercial=True,
)
POSE = Weights(
    repository=REPOSITORY,
    file="dw-ll_ucoco_384.onnx",
    revision=REVISION,
    bytes=134399116,
    sha256="724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843",
    licence="Apache-2.0",
    commercial=True,
)


def dwpose(images: RGB8, *, body: bool, hands: bool, face: bool, xinsir: bool, device: Any) -> RGB8:
    """The skeletons of everyone in (N, H, W, 3), on black."""
    frames = detect(images, hands=hands, face=face, device=device)
    return draw_all(frames, body=body, hands=hands, face=face, xinsir=xinsir)


def detect(
    images: RGB8, *, hands: bool = True, face: bool = True, device: Any = None
) -> list[Frame]:
    """Who is in each picture of (N, H, W, 3), with every part."""
    height, width = images.shape[1:3]
    with session(PEOPLE, device) as finder:
        boxes = [_boxes(image, finder) for image in images]
    with session(POSE, device) as net:
        people = [
            seen_in(image, found, net, whole_bodies)
            for image, found in zip(images, boxes, strict=True)
        ]
    frames = [Frame(width, height, tuple(found)) for found in people]
    return [frame.only(hands=hands, face=face) for frame in frames]


def _boxes(image: RGB8, finder: Any) -> Boxes:
    square, ratio = letterboxed(image)
    output = finder.run(None, {finder.get_inputs()[0].name: square[None]})
    return boxes_of(output[0][0], ratio)


ANNOTATOR = Annotator(
    name="dwpose",
    title="DWPose",
    description="Coloured skeletons of everyone, with hands and faces, on black, for a ControlNet "
    "trained on OpenPose; surer than OpenPose. Needs the package onnxruntime.",
    run=dwpose,
    params=PARTS,
    resolution=512,
    batched=True,
    weights=(PEOPLE, POSE),
)
