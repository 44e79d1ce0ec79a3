"""A picture without its details, for nets that invent new ones."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Param, Picture


def tile(image: RGB8, pyrup_iters: int, down_sampling_rate: float) -> RGB8:
    """(H, W, 3) made smaller, and smooth again at its own size.

    down_sampling_rate is Mikubill/sd-webui-controlnet's `tile_resample`, which leaves the
    enlargement (cubic) to what comes after; pyrup_iters is Fannovel16/comfyui_controlnet_aux's,
    which halves and doubles that often with a Gaussian pyramid.
    """
    import cv2

    height, width = image.shape[:2]
    small: Picture = image
    if down_sampling_rate >= 1.1:
        size = [max(1, int(side / down_sampling_rate)) for side in (width, height)]
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    # A side that isn't divisible is rounded up at each halving, so that doubling gives it back.
    sizes = [
        tuple(-(-side // 2**level) for side in (width, height)) for level in range(pyrup_iters + 1)
    ]
    small = cv2.resize(small, sizes.pop(), interpolation=cv2.INTER_AREA)
    for size in reversed(sizes):
        small = cv2.pyrUp(small, dstsize=size)
    return np.asarray(small, np.uint8)


ANNOTATOR = Annotator(
    name="tile",
    title="Tile",
    description="The picture without its fine details, for a tile ControlNet that invents new "
    "ones.",
    run=tile,
    params={
        "pyrup_iters": Param(
            3, 0, 10, "how often the picture is halved, and doubled again", also=("pyrUp_iters",)
        ),
        "down_sampling_rate": Param(
            1.0, 1.0, 8.0, "how much smaller the picture is made before; below 1.1 not", step=0.1
        ),
    },
)
