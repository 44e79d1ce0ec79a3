"""Realistic line art, fine or coarse (Chan, Durand and Isola, 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .base import RGB8, Annotator, Flag, Weights
from .edges import REPOSITORY, REVISION, as_hints, edge_padded, grey_levels
from .keeper import fill, network, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

FINE = Weights(
    repository=REPOSITORY,
    file="sk_model.pth",
    revision=REVISION,
    bytes=17_173_511,
    sha256="c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6",
    licence="MIT",
    commercial=True,
)
COARSE = replace(
    FINE,
    file="sk_model2.pth",
    sha256="30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0",
)


def lineart(images: RGB8, coarse: bool, device: Any = None) -> RGB8:
    """Lines of (N, H, W, 3), white on black."""
    from .nets.frames import as_tensor

    with network(COARSE if coarse else FINE, _build, device) as net:
        # Reflected borders are slow where the channels lie last in memory, as in pictures.
        frames = (as_tensor(edge_padded(images), net) / 255).contiguous()
        paper = outputs(net, frames)[:, 0].float()
    return as_hints(255 - grey_levels(paper), images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.lineart import Lineart

    with torch.device("meta"):
        return fill(Lineart(), tensors)


ANNOTATOR = Annotator(
    name="lineart",
    title="Realistic Line Art",
    description="A drawing of a photo in white lines on black, for lineart ControlNets.",
    run=lineart,
    params={"coarse": Flag(False, "fewer and rougher lines, from other weights")},
    resolution=512,
    batched=True,
    weights=(FINE, COARSE),
)
