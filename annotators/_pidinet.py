"""PiDiNet soft edges (Su et al., 2021), with their safe and scribble forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import RGB8, Weights
from .edges import REPOSITORY, REVISION, hints, record
from .keeper import fill, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="table5_pidinet.pth",
    revision=REVISION,
    bytes=2_871_148,
    sha256="80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c",
    licence="PiDiNet licence: research only",  # annotator/pidinet/LICENSE of ControlNet 1.1
    commercial=False,
)


def pidinet(images: RGB8, safe: bool, scribble: bool, device: Any = None) -> RGB8:
    """Soft edges of (N, H, W, 3), white on black."""
    return hints(images, WEIGHTS, _build, _edges, safe=safe, scribble=scribble, device=device)


def _edges(net: nn.Module, frames: Tensor) -> Tensor:
    """The net knows blue first, from 0 to 1."""
    return outputs(net, frames.flip(1) / 255)[:, 0].float()


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.pidinet import PiDiNet

    with torch.device("meta"):
        return fill(PiDiNet(), tensors)


ANNOTATOR = record(
    pidinet,
    "PiDiNet Soft Edges",
    "White outlines on black, finer than HED's, for softedge ControlNets, and as strokes for "
    "scribble ControlNets.",
    WEIGHTS,
)
