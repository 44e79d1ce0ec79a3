"""HED soft edges (Xie and Tu, 2015), with their safe and scribble forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import RGB8, Annotator, Weights
from .edges import (
    REPOSITORY,
    REVISION,
    SAFE,
    SAFE_STEPS,
    SCRIBBLE,
    as_hints,
    edge_padded,
    outputs,
    sigmoid,
    soft_edges,
)
from .keeper import fill, network

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="ControlNetHED.pth",
    revision=REVISION,
    bytes=29_444_406,
    sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    licence="Apache-2.0",
    commercial=True,
)


def hed(images: RGB8, safe: bool, scribble: bool, device: Any = None) -> RGB8:
    """Soft edges of (N, H, W, 3), white on black."""
    from .nets.frames import as_tensor

    with network(WEIGHTS, _build, device) as net:
        edges = sigmoid(outputs(net, as_tensor(edge_padded(images), net))[:, 0])
    return as_hints(soft_edges(edges, SAFE_STEPS if safe else 0, scribble=scribble), images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.hed import HED

    with torch.device("meta"):
        return fill(HED(), tensors)


ANNOTATOR = Annotator(
    name="hed",
    title="HED Soft Edges",
    description="Soft white outlines on black, for softedge ControlNets, and as strokes for "
    "scribble ControlNets.",
    run=hed,
    params={"safe": SAFE, "scribble": SCRIBBLE},
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
