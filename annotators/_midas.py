"""Depth by MiDaS, and normals by the slope of that depth, as the first ControlNets used them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Param, Weights
from .depth_maps import near_is_white, normals
from .pictures import as_rgb, each

WEIGHTS = Weights(
    repository="lllyasviel/Annotators",
    file="dpt_hybrid-midas-501f0c75.pt",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
    bytes=None,
    sha256="501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853",
    licence="MIT",
    commercial=True,
)


def midas(images: RGB8, device: Any) -> RGB8:
    """Depth (N, H, W, 3) of pictures (N, H, W, 3): each one's nearest white, its farthest black."""
    return as_rgb(np.stack(each(near_is_white, _nearness(images, device))))


def midas_normal(images: RGB8, a: float, bg_threshold: float, device: Any) -> RGB8:
    """Normals (N, H, W, 3) of pictures (N, H, W, 3), by the slope of their depth."""
    colours = partial(normals, steepness=a, background=bg_threshold)
    return np.stack(each(colours, _nearness(images, device)))


def _nearness(images: RGB8, device: Any) -> NDArray[np.float32]:
    from .keeper import network
    from .nets.midas import build, nearness

    with network(WEIGHTS, build, device) as net:
        found: NDArray[np.float32] = nearness(net, images)
    return found


ANNOTATOR = Annotator(
    name="midas",
    title="Depth (MiDaS)",
    description="How near everything is, near white and far black; smooth.",
    run=midas,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)

NORMAL = Annotator(
    name="midas_normal",
    title="Normals (MiDaS)",
    description="Normals by the slope of the depth, for the first normal ControlNet.",
    run=midas_normal,
    params={
        "a": Param(2 * math.pi, 0.1, 10 * math.pi, "larger makes surfaces look flatter"),
        "bg_threshold": Param(
            0.1,
            0.0,
            1.0,
            "what is farther than this part of the depth counts as flat",
            also=("bg_th",),
        ),
    },
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
