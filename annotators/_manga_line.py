"""Lines of manga pages without their screen tones (Li, Liu and Wong, 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import RGB8, Annotator, Weights
from .edges import REPOSITORY, REVISION, as_hints, edge_padded
from .keeper import fill, network, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="erika.pth",
    revision=REVISION,
    bytes=172_789_563,
    sha256="badbd6baf013cefbd98993307b02cc14a26c770d067416e4fdecc8720b88feeb",
    licence="MIT",
    commercial=True,
)


def manga_line(images: RGB8, device: Any = None) -> RGB8:
    """Lines of (N, H, W, 3), white on black."""
    import cv2

    from .nets.frames import as_tensor, whole

    grey = np.stack([cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in edge_padded(images)])
    with network(WEIGHTS, _build, device) as net:
        paper = whole(outputs(net, as_tensor(grey[..., None], net))[:, 0].float())
    return as_hints(255 - paper, images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.manga_line import MangaLine

    with torch.device("meta"):
        return fill(MangaLine(), tensors)


ANNOTATOR = Annotator(
    name="manga_line",
    title="Manga Lines",
    description="The lines of a manga page without its screen tones, white on black, for "
    "lineart_anime ControlNets.",
    run=manga_line,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
