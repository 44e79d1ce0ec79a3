"""Straight line segments (Gu et al., "M-LSD", 2022), for rooms and buildings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Param, Weights
from .edges import REPOSITORY, REVISION, as_hints, edge_padded
from .keeper import fill, network, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="mlsd_large_512_fp32.pth",
    revision=REVISION,
    bytes=6_341_481,
    sha256="5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082",
    licence="Apache-2.0",
    commercial=True,
)


def mlsd(images: RGB8, score_threshold: float, dist_threshold: float, device: Any = None) -> RGB8:
    """Line segments of (N, H, W, 3), white on black."""
    import cv2

    from .nets.frames import as_tensor
    from .nets.mlsd import likeliest

    frames = edge_padded(images)
    with network(WEIGHTS, _build, device) as net:
        maps = outputs(net, as_tensor(frames, net))
    found = [part.float().cpu().numpy() for part in likeliest(maps)]
    drawings = np.zeros(frames.shape[:3], np.uint8)
    for drawing, scores, middles, moves in zip(drawings, *found, strict=True):
        for x0, y0, x1, y1 in line_ends(scores, middles, moves, score_threshold, dist_threshold):
            cv2.line(drawing, (x0, y0), (x1, y1), 255, 1)
    return as_hints(drawings, images)


def line_ends(
    scores: NDArray[np.float32],
    middles: NDArray[np.float32],
    moves: NDArray[np.float32],
    score_threshold: float,
    dist_threshold: float,
) -> list[list[int]]:
    """x, y, x, y of the segments (K, ...) that pass, in pixels of the picture.

    As in mlsd_pytorch `pred_lines`: lengths are measured in the maps of half the size, and ends are
    cut off to whole pixels after doubling.
    """
    lengths = np.sqrt(np.sum((moves[:, :2] - moves[:, 2:]) ** 2, axis=-1))
    passed = (scores > score_threshold) & (lengths > dist_threshold)
    ends = np.tile(middles, 2).astype(np.float64) + moves
    whole: list[list[int]] = (2 * ends[passed]).astype(np.int64).tolist()
    return whole


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.mlsd import MLSD

    with torch.device("meta"):
        return fill(MLSD(), tensors)


ANNOTATOR = Annotator(
    name="mlsd",
    title="M-LSD Straight Lines",
    description="Straight white line segments on black, for mlsd ControlNets: rooms, buildings.",
    run=mlsd,
    params={
        "score_threshold": Param(
            0.1, 0.01, 2.0, "fainter line segments than this are dropped", also=("thr_v",)
        ),
        "dist_threshold": Param(
            0.1,
            0.01,
            20.0,
            "shorter line segments than this are dropped, in steps of 2 pixels",
            also=("thr_d",),
        ),
    },
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
