"""What every part of a picture is, in the colours of ADE20K's 150 classes."""

from __future__ import annotations

from typing import Any

from .base import RGB8, Annotator, Weights
from .palettes import ade20k, segmented

WEIGHTS = Weights(
    repository="openmmlab/upernet-convnext-small",
    file="pytorch_model.bin",
    revision="550b68d291f9a7e4874065c6eec0676b2ba821e6",
    bytes=327_701_893,
    sha256="76c163aa531ab7edfb3a77bbcc039e340645aa0ffe2b0ffcfc68755f550c76ea",
    licence="MIT",  # its card; the code it is from, open-mmlab/mmsegmentation, is Apache-2.0
    commercial=True,
)


def segments(images: RGB8, device: Any) -> RGB8:
    """Coloured segments (N, H, W, 3) of pictures (N, H, W, 3)."""
    from .nets import upernet as nets

    return segmented(images, WEIGHTS, nets, ade20k(), device)


ANNOTATOR = Annotator(
    name="segments",
    title="Segments (ADE20K)",
    description="What is where: each of 150 classes (wall, sky, person, ...) in its own colour.",
    run=segments,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
