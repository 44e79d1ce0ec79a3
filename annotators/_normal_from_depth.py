"""Normals from a depth picture, by its slopes."""

from __future__ import annotations

import numpy as np

from .base import RGB8, Annotator, Choice, Param, Picture

MIDAS, XYZ = "midas", "xyz"


def normal_from_depth(
    image: RGB8, depth_range: float, a: float, bg_threshold: float, order: str
) -> RGB8:
    """Normals of a depth picture (H, W, 3) whose white is near, as colours.

    The formula of lllyasviel/ControlNet `annotator/midas`, with the depth picture's values from 0
    to `depth_range` in the place of the network's own numbers.
    """
    import cv2

    grey = image if (image == image[..., :1]).all() else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    near = grey.reshape(*grey.shape[:2], -1)[..., 0].astype(np.float32) / 255
    return normals(near * np.float32(depth_range), a, bg_threshold, order)


def normals(depth: Picture, a: float, bg_threshold: float, order: str = MIDAS) -> RGB8:
    """The colours (H, W, 3) of the normals of a depth (H, W), larger being nearer.

    a: the normals' part towards the viewer, in the depth's unit; bg_threshold: the share of the
    depth's range below which nothing slopes; order: what red, green and blue are.
    """
    import cv2

    span = float(depth.max() - depth.min())
    share = (depth - depth.min()) / (span or 1.0)
    x: Picture = cv2.Sobel(depth, cv2.CV_32F, 1, 0, ksize=3)
    y: Picture = cv2.Sobel(depth, cv2.CV_32F, 0, 1, ksize=3)
    far = share < bg_threshold
    x[far] = 0
    y[far] = 0
    normal: Picture = np.stack([x, y, np.full_like(x, a)], axis=2)
    normal /= np.sum(normal**2.0, axis=2, keepdims=True) ** 0.5
    colours = (normal * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(colours[..., ::-1] if order == MIDAS else colours)


ANNOTATOR = Annotator(
    name="normal_from_depth",
    title="Normal from Depth",
    description="Normals from a depth picture whose white is near, for a normal ControlNet.",
    run=normal_from_depth,
    params={
        "depth_range": Param(
            20.0, 0.1, 1000.0, "how deep the picture is: more makes slopes steeper", step=0.1
        ),
        "a": Param(6.28, 0.1, 31.4, "how much normals point to the viewer: less makes steeper"),
        "bg_threshold": Param(0.1, 0.0, 1.0, "what is darker than this share is flat background"),
        "order": Choice(
            MIDAS,
            (MIDAS, XYZ),
            "midas: red is to the viewer, green down, blue right, as ControlNet 1.0 was trained; "
            "xyz: red and blue the other way round",
        ),
    },
)
