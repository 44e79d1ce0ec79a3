"""What every part of a picture is, by OneFormer (Jain et al., 2211.06220)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .base import RGB8, Annotator, Choice, Weights
from .palettes import ade20k, coco, segmented

# The authors' networks 250_16_swin_l_oneformer_ade20k_160k and 150_16_swin_l_oneformer_coco_100ep,
# which ControlNet 1.1 was made with, in the form that they gave to transformers.
_ADE20K = Weights(
    repository="shi-labs/oneformer_ade20k_swin_large",
    file="pytorch_model.bin",
    revision="74628c004404c60d21423c034d98a0da3e6f918e",
    bytes=879_517_517,
    sha256="c0b2fe11dfecee6f2f1f315f466946e96f4e94813f3f6d660ff3747b83c28cc9",
    licence="MIT",  # LICENSE of SHI-Labs/OneFormer, and the cards
    commercial=True,
)
MODELS = {
    "ade20k": _ADE20K,
    "ade20k-tiny": replace(
        _ADE20K,
        repository="shi-labs/oneformer_ade20k_swin_tiny",
        revision="05f2812b1eccf9909b3897777450f8d68148cafc",
        bytes=203_389_501,
        sha256="909b07dbf4129c2bbb8df4498e35dcd46f305e3ec45329d3ff6d4f0360de27f3",
    ),
    "coco": replace(
        _ADE20K,
        repository="shi-labs/oneformer_coco_swin_large",
        revision="4e191050efb7b92cf62fbd053c88c7e2b071728b",
        bytes=None,
        sha256=None,
    ),
}


def oneformer(images: RGB8, model: str, device: Any) -> RGB8:
    """Coloured segments (N, H, W, 3) of pictures (N, H, W, 3)."""
    from .nets import oneformer as nets

    palette = coco() if model == "coco" else ade20k()
    return segmented(images, MODELS[model], nets, palette, device)


ANNOTATOR = Annotator(
    name="oneformer",
    title="Segments (OneFormer)",
    description="What is where, each class in its own colour: the 150 of ADE20K or the 133 of "
    "COCO, for ControlNets of segments.",
    run=oneformer,
    params={
        "model": Choice("ade20k", tuple(MODELS), "whose classes and colours; tiny is a fast one"),
    },
    resolution=512,
    batched=True,
    weights=tuple(MODELS.values()),
)
