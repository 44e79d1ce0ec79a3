"""Anime line art (Mukosame/Anime2Sketch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .base import RGB8, Annotator, Weights
from .edges import REPOSITORY, REVISION, as_hints, edge_padded
from .keeper import fill, network, outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="netG.pth",
    revision=REVISION,
    bytes=217_631_959,
    sha256="ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488",
    licence="MIT",
    commercial=True,
)
MULTIPLE = 256


def lineart_anime(images: RGB8, device: Any = None) -> RGB8:
    """Lines of (N, H, W, 3), white on black.

    The references stretch a picture to multiples of 256; here it is padded, so lines stay as sharp
    as they are drawn and circles stay round.
    """
    from .nets.frames import as_tensor, whole

    with network(WEIGHTS, _build, device) as net:
        # Normalising is slow where the channels lie last in memory, as in pictures.
        frames = (as_tensor(edge_padded(images, MULTIPLE), net) / 127.5 - 1).contiguous()
        paper = whole(outputs(net, frames)[:, 0].float() * 127.5 + 127.5)
    return as_hints(255 - paper, images)


def _build(tensors: Mapping[str, Tensor]) -> nn.Module:
    import torch

    from .nets.lineart_anime import LineartAnime

    with torch.device("meta"):
        return fill(LineartAnime(), tensors)


ANNOTATOR = Annotator(
    name="lineart_anime",
    title="Anime Line Art",
    description="A drawing of an anime picture in white lines on black, for lineart_anime "
    "ControlNets.",
    run=lineart_anime,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
