"""Skeletons of animals (RTMPose on AP-10K, Jiang et al., 2023): four-legged ones and birds."""

from __future__ import annotations

from typing import Any

from ._dwpose import PEOPLE as FINDER
from .base import RGB8, Annotator, Weights
from .keeper import session
from .keypoints import Frame, Part
from .pose_simcc import ANIMAL, animals, seen_in
from .pose_yolox import ANIMALS, boxes_of, letterboxed
from .skeleton import draw_all

POSE = Weights(
    repository="hr16/UnJIT-DWPose",
    file="rtmpose-m_ap10k_256.onnx",
    revision="7a69fe1d5e7fa512798c2492dc7489c1a0e2ceee",
    bytes=54_478_120,
    sha256="1cfd1c86e0d9e5d5f95178bcd95ee9a4e8386a624cd3c57519f27ff58cac7f28",
    licence="Apache-2.0 (open-mmlab/mmpose)",
    commercial=True,
)


def animal_pose(images: RGB8, *, device: Any) -> RGB8:
    """The skeletons of the animals in (N, H, W, 3), on black."""
    return draw_all(detect(images, device=device))


def detect(images: RGB8, *, device: Any = None, **_: bool) -> list[Frame]:
    """The animals in each picture of (N, H, W, 3); they have no parts to choose from."""
    height, width = images.shape[1:3]
    with session(FINDER, device) as finder, session(POSE, device) as net:
        return [Frame(width, height, (), _animals(image, finder, net)) for image in images]


def _animals(image: RGB8, finder: Any, net: Any) -> tuple[Part, ...]:
    square, ratio = letterboxed(image)
    output = finder.run(None, {finder.get_inputs()[0].name: square[None]})
    boxes = boxes_of(output[0][0], ratio, ANIMALS)
    return tuple(seen_in(image, boxes, net, animals, ANIMAL))


ANNOTATOR = Annotator(
    name="animal_pose",
    title="Animal Pose",
    description="Coloured skeletons of four-legged animals and birds on black, for a ControlNet "
    "trained on AP-10K. Needs the package onnxruntime.",
    run=animal_pose,
    resolution=512,
    batched=True,
    weights=(FINDER, POSE),
)
