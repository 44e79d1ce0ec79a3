"""Depth by Depth Anything V1 and V2 (Yang et al., 2401.10891 and 2406.09414): near is white."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .base import RGB8, Annotator, Choice, Weights
from .depth_maps import near_is_white
from .pictures import as_rgb, each

# LICENSE of LiheYoung/Depth-Anything, which is that of the weights too: its issue 15.
_SMALL = Weights(
    repository="LiheYoung/depth-anything-small-hf",
    file="model.safetensors",
    revision="9103bc8e2d785bcfd024e4bfd7e7c4593bc50bba",
    bytes=None,
    sha256=None,
    licence="Apache-2.0",
    commercial=True,
    local_names=("depth_anything_vits14.pth",),
)
V1 = {
    "small": _SMALL,
    "base": replace(
        _SMALL,
        repository="LiheYoung/depth-anything-base-hf",
        revision="fbce2ff06a429af8a3fdb9296c6a922a37e43482",
        local_names=("depth_anything_vitb14.pth",),
    ),
    "large": replace(
        _SMALL,
        repository="LiheYoung/depth-anything-large-hf",
        revision="27ccb0920352c0c37b3a96441873c8d37bd52fb6",
        local_names=("depth_anything_vitl14.pth",),
    ),
}
# README of DepthAnything/Depth-Anything-V2: only the small one may be used commercially.
V2 = {
    "small": Weights(
        repository="depth-anything/Depth-Anything-V2-Small",
        file="depth_anything_v2_vits.pth",
        revision="03876f8651c73a60fe4c2c48294e09fcb6838fcf",
        bytes=99_218_434,
        sha256="715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
        licence="Apache-2.0",
        commercial=True,
    ),
    "base": Weights(
        repository="depth-anything/Depth-Anything-V2-Base",
        file="depth_anything_v2_vitb.pth",
        revision="a4e71a6c2ce52fe50df0f212066b0d4a87be9b5e",
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


def depth_anything(images: RGB8, model: str, device: Any) -> RGB8:
    """Depth (N, H, W, 3) of pictures (N, H, W, 3): each one's nearest white, its farthest black."""
    from .nets.depth_anything import build_v1

    return _depth(images, V1[model], build_v1, device)


def depth_anything_v2(images: RGB8, model: str, device: Any) -> RGB8:
    """The same, of the second version."""
    from .nets.depth_anything import build_v2

    return _depth(images, V2[model], build_v2, device)


def _depth(images: RGB8, weights: Weights, build: Callable[..., Any], device: Any) -> RGB8:
    from .keeper import network
    from .nets.depth_anything import nearness

    with network(weights, build, device) as net:
        found = nearness(net, images)
    return as_rgb(np.stack(each(near_is_white, found)))


def _record(
    run: Callable[..., RGB8], title: str, description: str, sizes: Mapping[str, Weights]
) -> Annotator:
    return Annotator(
        name=run.__name__,
        title=title,
        description=description,
        run=run,
        params={"model": Choice("small", tuple(sizes), "larger ones are finer and slower")},
        resolution=512,
        batched=True,
        weights=tuple(sizes.values()),
    )


ANNOTATOR = _record(
    depth_anything,
    "Depth (Depth Anything)",
    "How near everything is, near white and far black.",
    V1,
)
SECOND = _record(
    depth_anything_v2,
    "Depth (Depth Anything V2)",
    "How near everything is, near white and far black, with fine detail.",
    V2,
)
