"""Nodes for poses as data: people found in pictures, and drawn at any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..annotators import ANNOTATORS, weights
from ..annotators.keypoints import Frame, frames_from_json, to_json
from ..annotators.pose import DETECTORS, KIND, RESOLUTION, poses_in
from ..annotators.skeleton import draw_all, drawing_size
from .annotate import host_device, host_progress, is_limited
from .images import to_floats, to_image
from .texts import CATEGORY

POSES = f"{CATEGORY}/poses"
POSE_KEYPOINT = "POSE_KEYPOINT"
"""The type under which comfyui_controlnet_aux and others hand on OpenPose JSON: one dictionary for
each picture."""


def part_inputs() -> list[io.Input]:
    """Which parts are drawn, and how."""
    return [
        io.Boolean.Input("body", default=True, tooltip="Bodies."),
        io.Boolean.Input("hands", default=True, tooltip="Hands."),
        io.Boolean.Input("face", default=True, tooltip="Faces."),
        io.Boolean.Input(
            "xinsir",
            default=False,
            tooltip="Thicker sticks, as the openpose ControlNets of xinsir expect them.",
        ),
    ]


def pose_outputs() -> list[io.Output]:
    return [
        io.Image.Output(display_name="image", tooltip="Skeletons on black, for Apply ControlNet."),
        io.Custom(POSE_KEYPOINT).Output(
            display_name="poses", tooltip="The keypoints, one set for each picture."
        ),
        io.String.Output(display_name="json", tooltip="The keypoints as OpenPose JSON."),
    ]


def result(frames: Sequence[Frame], size: tuple[int, int], **options: bool) -> io.NodeOutput:
    """The drawing as the host's IMAGE, the poses, and their text."""
    drawn = to_image(draw_all(frames, size=size, **options))
    poses = [to_json(frame) for frame in frames]
    return io.NodeOutput(drawn, poses, json.dumps(poses))


def detectors() -> tuple[str, str]:
    """Which detector is the default, and what is said of those that limit their use."""
    limited = [name for name in DETECTORS if is_limited(ANNOTATORS[name])]
    said = f"Not for commercial use: the weights of {', '.join(limited)}"
    if not weights.commercial_only():
        return KIND, f"{said}."
    free = next(name for name in DETECTORS if name not in limited)
    return free, f"{said}; switched off here, by {weights.COMMERCIAL_VARIABLE}."


class DetectPose(io.ComfyNode):
    """Who is in each picture, as skeletons and as keypoints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default, limited = detectors()
        return io.Schema(
            node_id="CLDM_DetectPose",
            display_name="Detect Poses (CLDM)",
            category=POSES,
            description="Finds people with their hands and faces. The skeletons are drawn at the "
            "picture's own size, whatever the resolution of the search. dwpose is the surest and "
            "needs the package onnxruntime; blazepose is quick on a CPU and needs the package "
            f"ai-edge-litert. {limited}",
            inputs=[
                io.Image.Input("image", tooltip="The pictures to look at."),
                io.Combo.Input(
                    "detector", options=[*DETECTORS], default=default, tooltip="Who looks."
                ),
                *part_inputs(),
                io.Int.Input(
                    "resolution",
                    default=RESOLUTION,
                    min=0,
                    max=16384,
                    tooltip="Short side of the picture in which people are looked for; 0: as it "
                    "is.",
                ),
            ],
            outputs=pose_outputs(),
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        detector: str,
        body: bool,
        hands: bool,
        face: bool,
        xinsir: bool,
        resolution: int,
    ) -> io.NodeOutput:
        pictures = to_floats(image)
        parts = {"body": body, "hands": hands, "face": face}
        with host_progress():
            frames = poses_in(
                pictures, kind=detector, resolution=resolution, device=host_device(), **parts
            )
        return result(frames, (frames[0].width, frames[0].height), xinsir=xinsir, **parts)


class PoseToImage(io.ComfyNode):
    """Keypoints drawn at any size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side: dict[str, Any] = {"default": 0, "min": 0, "max": 16384}
        return io.Schema(
            node_id="CLDM_PoseToImage",
            display_name="Pose to Image (CLDM)",
            category=POSES,
            description="Draws poses as the openpose ControlNets expect them, at the size asked "
            "for and never enlarged. Takes poses of this pack or of comfyui_controlnet_aux, or "
            "OpenPose JSON as a text, as openpose editors write it.",
            inputs=[
                io.Custom(POSE_KEYPOINT).Input(
                    "poses", optional=True, tooltip="Poses; without them the text is read."
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="OpenPose JSON: people with pose_keypoints_2d and canvas_width, "
                    "canvas_height. Read where no poses are connected.",
                ),
                io.Int.Input(
                    "width",
                    **side,
                    tooltip="Width of the drawing in pixels; 0: what the height and the poses' own "
                    "aspect make it.",
                ),
                io.Int.Input(
                    "height",
                    **side,
                    tooltip="Height of the drawing in pixels; 0: what the width and the poses' own "
                    "aspect make it.",
                ),
                *part_inputs(),
            ],
            outputs=pose_outputs(),
        )

    @classmethod
    def execute(
        cls,
        text: str,
        width: int,
        height: int,
        body: bool,
        hands: bool,
        face: bool,
        xinsir: bool,
        poses: Any = None,
    ) -> io.NodeOutput:
        frames = frames_from_json(text if poses is None else poses)
        parts = {"body": body, "hands": hands, "face": face}
        return result(frames, drawing_size(frames[0], width, height), xinsir=xinsir, **parts)


POSE_NODES: list[type[io.ComfyNode]] = [DetectPose, PoseToImage]
