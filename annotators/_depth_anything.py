"""Depth by Depth Anything (Yang et al., 2401.10891): near is white."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import RGB8, Annotator, Choice, Weights
from .depth_maps import near_is_white
from .pictures import as_rgb, each

SIZES = {
    "small": Weights(
        repository="LiheYoung/depth-anything-small-hf",
        file="model.safetensors",
        revision="main",
        bytes=None,
        sha256=None,
        licence="Apache-2.0",
        commercial=True,
        local_names=("depth_anything_vits14.pth",),
    ),
    "base": Weights(
        repository="LiheYoung/depth-anything-base-hf",
        file="model.safetensors",
        revision="main",
        bytes=None,
        sha256=None,
        licence="Apache-2.0",
        commercial=True,
        local_names=("depth_anything_vitb14.pth",),
    ),
    "large": Weights(
        repository="LiheYoung/depth-anything-large-hf",
        file="model.safetensors",
        revision="main",
        bytes=None,
        sha256=None,
        licence="Apache-2.0",
        commercial=True,
        local_names=("depth_anything_vitl14.pth",),
    ),
}


def depth_anything(images: RGB8, model: str, device: Any) -> RGB8:
    """Depth (N, H, W, 3) of pictures (N, H, W, 3): each one's nearest white, its farthest black."""
    from .keeper import network
    from .nets.depth_anything import build_v1, nearness

    with network(SIZES[model], build_v1, device) as net:
        found = nearness(net, images)
    return as_rgb(np.stack(each(near_is_white, found)))


ANNOTATOR = Annotator(
    name="depth_anything",
    title="Depth (Depth Anything)",
    description="How near everything is, near white and far black.",
    run=depth_anything,
    params={
        "model": Choice("small", tuple(SIZES), "larger ones are finer and slower"),
    },
    resolution=512,
    batched=True,
    weights=tuple(SIZES.values()),
)
