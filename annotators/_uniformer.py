"""What every part of a picture is, by UniFormer (Li et al., 2201.09450), in ADE20K's colours."""

from __future__ import annotations

from typing import Any

from .base import RGB8, Annotator, Weights
from .edges import REPOSITORY, REVISION
from .palettes import ade20k, segmented

WEIGHTS = Weights(
    repository=REPOSITORY,
    file="upernet_global_small.pth",
    revision=REVISION,
    bytes=None,
    sha256="bebfa1264c10381e389d8065056baaadbdadee8ddc6e36770d1ec339dc84d970",
    licence="Apache-2.0",  # annotator/uniformer/LICENSE of ControlNet 1.1; Sense-X/UniFormer: MIT
    commercial=True,
)


def uniformer(images: RGB8, device: Any) -> RGB8:
    """Coloured segments (N, H, W, 3) of pictures (N, H, W, 3)."""
    from .nets import uniformer as nets

    return segmented(images, WEIGHTS, nets, ade20k(), device)


ANNOTATOR = Annotator(
    name="uniformer",
    title="Segments (UniFormer)",
    description="What is where: each of ADE20K's 150 classes (wall, sky, person, ...) in its own "
    "colour, as the first ControlNets of segments were trained on.",
    run=uniformer,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
