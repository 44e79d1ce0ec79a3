"""Depth by ZoeDepth (Bhat et al., 2302.12288): near is white, what is far is black."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .base import RGB8, Annotator, Choice, Flag, Weights
from .depth_maps import far_is_black
from .pictures import as_rgb, each

# MIT: README of isl-org/ZoeDepth, and the cards of both files.
MODELS = {
    "nyu-kitti": Weights(
        repository="Intel/zoedepth-nyu-kitti",
        file="model.safetensors",
        revision="f364d4c7936e91f465abba182208dd68142bf0ca",
        bytes=1_380_374_404,
        sha256="c5494fa0938f18d71e215e245472470c3aefebd7b434abd89750e5ae4008e2dc",
        licence="MIT",
        commercial=True,
    ),
    "nyu": Weights(
        repository="Intel/zoedepth-nyu",
        file="model.safetensors",
        revision="52ae69caf7896c927909b3ceab4249c235e16dc1",
        bytes=None,
        sha256="b616e347efc30e64822be28d2464c2fcd0b665b5fdbc9a135d53d168c31c77ab",
        licence="MIT",
        commercial=True,
    ),
}


def zoe(images: RGB8, model: str, gamma: bool, device: Any) -> RGB8:
    """Depth (N, H, W, 3) of pictures (N, H, W, 3), spread from their 2nd to 85th percentiles."""
    from .keeper import network
    from .nets.zoe import build, distance

    with network(MODELS[model], build, device) as net:
        metres = distance(net, images)
    return as_rgb(np.stack(each(partial(far_is_black, gamma=gamma), metres)))


ANNOTATOR = Annotator(
    name="zoe",
    title="Depth (ZoeDepth)",
    description="How far everything is, near white and far black, with much contrast up close.",
    run=zoe,
    params={
        "model": Choice("nyu-kitti", tuple(MODELS), "nyu knows rooms, nyu-kitti streets as well"),
        "gamma": Flag(
            False,
            "darken the middle: raise the hint to the power of 2.2",
            also=("gamma_corrected",),
        ),
    },
    resolution=512,
    batched=True,
    weights=tuple(MODELS.values()),
)
