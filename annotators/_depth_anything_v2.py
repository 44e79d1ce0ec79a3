"""Depth by Depth Anything V2 (Yang et al., 2406.09414): near is white."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import RGB8, Annotator, Choice, Weights
from .depth_maps import near_is_white
from .pictures import as_rgb, each

SIZES = {
    "small": Weights(
        repository="depth-anything/Depth-Anything-V2-Small",
        file="depth_anything_v2_vits.pth",
        revision="main",
        bytes=99_218_434,
        sha256="715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
        licence="Apache-2.0",
        commercial=True,
    ),
    "base": Weights(
        repository="depth-anything/Depth-Anything-V2-Base",
        file="depth_anything_v2_vitb.pth",
        revision="main",
        bytes=389_961_218,
        sha256="0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328",
        licence="CC-BY-NC-4.0",
        commercial=False,
    ),
    "large": Weights(
        repository="depth-anything/Depth-Anything-V2-Large",
        file="depth_anything_v2_vitl.pth",
        revision="cbbb86a30ce19b5684b7a05155dc7e6cbc7685b9",
        bytes=1_341_395_338,
        sha256="a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345",
        licence="CC-BY-NC-4.0",
        commercial=False,
    ),
}


def depth_anything_v2(images: RGB8, model: str, device: Any) -> RGB8:
    """Depth (N, H, W, 3) of pictures (N, H, W, 3): each one's nearest white, its farthest black."""
    from .keeper import network
    from .nets.depth_anything import build_v2, nearness

    with network(SIZES[model], build_v2, device) as net:
        found = nearness(net, images)
    return as_rgb(np.stack(each(near_is_white, found)))


ANNOTATOR = Annotator(
    name="depth_anything_v2",
    title="Depth (Depth Anything V2)",
    description="How near everything is, near white and far black, with fine detail.",
    run=depth_anything_v2,
    params={
        "model": Choice("small", tuple(SIZES), "larger ones are finer and slower"),
    },
    resolution=512,
    batched=True,
    weights=tuple(SIZES.values()),
)
