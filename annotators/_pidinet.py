"""PiDiNet soft edges (Su et al., 2021), with their safe and scribble forms."""

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
    soft_edges,
)
from .keeper import fill, network

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="table5_pidinet.pth",
    revision=REVISION,
    bytes=None,
    sha256="80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c",
    licence="PiDiNet licence: research only",
    commercial=False,
)


def pidinet(images: RGB8, safe: bool, scribble: bool, device: Any = None) -> RGB8:
    """Soft edges of (N, H, W, 3), white on black."""
    from .nets.frames import as_tensor

    blue_first = edge_padded(images)[..., ::-1]
    with network(WEIGHTS, _build, device) as net:
        edges = outputs(net, as_tensor(blue_first, net) / 255)[:, 0].float()
    return as_hints(soft_edges(edges, SAFE_STEPS if safe else 0, scribble=scribble), images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.pidinet import PiDiNet

    with torch.device("meta"):
        return fill(PiDiNet(), tensors)


ANNOTATOR = Annotator(
    name="pidinet",
    title="PiDiNet Soft Edges",
    description="White outlines on black, finer than HED's, for softedge ControlNets, and as "
    "strokes for scribble ControlNets.",
    run=pidinet,
    params={"safe": SAFE, "scribble": SCRIBBLE},
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
