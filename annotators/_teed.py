"""TEED soft edges (Soria et al., 2023): a network of 59,000 weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import RGB8, Annotator, Param, Weights
from .edges import SAFE_STEPS, as_hints, edge_padded, sigmoid, soft_edges
from .keeper import fill, network, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository="bdsqlsz/qinglong_controlnet-lllite",
    file="Annotators/7_model.pth",
    revision="main",
    bytes=247_232,
    sha256="b9037964149c55156c6adbffdfbd7e8ca7d2ef2a4d90573520efa7f3a1aacf06",
    licence="MIT",
    commercial=True,
)


def teed(images: RGB8, safe_steps: int, device: Any = None) -> RGB8:
    """Soft edges of (N, H, W, 3), white on black."""
    from .nets.frames import as_tensor

    with network(WEIGHTS, _build, device) as net:
        edges = sigmoid(outputs(net, as_tensor(edge_padded(images), net))[:, 0])
    return as_hints(soft_edges(edges, safe_steps), images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.teed import TEED

    with torch.device("meta"):
        return fill(TEED(), tensors)


ANNOTATOR = Annotator(
    name="teed",
    title="TEED Soft Edges",
    description="White outlines on black with much detail, fast, for softedge ControlNets.",
    run=teed,
    params={
        "safe_steps": Param(
            SAFE_STEPS, 0, 10, "how many flat grey levels there are besides black; 0: soft ones"
        ),
    },
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
