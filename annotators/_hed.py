"""HED soft edges (Xie and Tu, 2015), with their safe and scribble forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import RGB8, Weights
from .edges import REPOSITORY, REVISION, hints, record, sigmoid
from .keeper import fill, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="ControlNetHED.pth",
    revision=REVISION,
    bytes=29_444_406,
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    licence="Apache-2.0",  # as its author names it: ControlNetHED_Apache2 in ControlNet 1.1
    commercial=True,
)


def hed(images: RGB8, safe: bool, scribble: bool, device: Any = None) -> RGB8:
    """Soft edges of (N, H, W, 3), white on black."""
    return hints(images, WEIGHTS, _build, _edges, safe=safe, scribble=scribble, device=device)


def _edges(net: nn.Module, frames: Tensor) -> Tensor:
    return sigmoid(outputs(net, frames)[:, 0])


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.hed import HED

    with torch.device("meta"):
        return fill(HED(), tensors)


ANNOTATOR = record(
    hed,
    "HED Soft Edges",
    "Soft white outlines on black, for softedge ControlNets, and as strokes for scribble "
    "ControlNets.",
    WEIGHTS,
)
