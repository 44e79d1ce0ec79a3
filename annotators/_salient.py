"""What a picture is about, by U-2-Net (Qin et al., 2005.09007): a white mask on black."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Choice, Weights
from .depth_maps import near_is_white
from .pictures import as_rgb

SIDE = 320
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REPOSITORY, REVISION = "tomjackson2023/rembg", "cd3a3d6767a7859efea31ef0f2f373582cf06d82"
# Apache-2.0: xuebinqin/U-2-Net, whose author says in issue 208 that the models are too.
MODELS = {
    "small": Weights(
        repository=REPOSITORY,
        file="u2netp.onnx",
        revision=REVISION,
        bytes=4_574_861,
        sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        licence="Apache-2.0",
        commercial=True,
    ),
    "full": Weights(
        repository=REPOSITORY,
        file="u2net.onnx",
        revision=REVISION,
        bytes=175_997_641,
        sha256="8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
        licence="Apache-2.0",
        commercial=True,
    ),
}


def salient(image: RGB8, model: str, device: Any) -> RGB8:
    """The mask (H, W, 3) of a picture (H, W, 3), stretched from black to white.

    Resampled in and out as danielgatis/rembg does, so bit for bit what its `only_mask` gives.
    """
    from PIL import Image

    from .keeper import session

    height, width, _ = image.shape
    with session(MODELS[model], device) as net:
        found = net.run(None, {net.get_inputs()[0].name: prepared(image)})[0][0, 0]
    mask = Image.fromarray(near_is_white(found))
    return as_rgb(np.asarray(mask.resize((width, height), Image.Resampling.LANCZOS)))


def prepared(image: RGB8) -> NDArray[np.float32]:
    """(1, 3, SIDE, SIDE), its brightest value made 1, then normalised."""
    from PIL import Image

    square = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(square)
    pixels = (pixels / max(pixels.max(), 1) - MEAN) / DEVIATION
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(np.float32)


ANNOTATOR = Annotator(
    name="salient",
    title="Salient object (U-2-Net)",
    description="A mask of what the picture is about, white on black. Needs onnxruntime.",
    run=salient,
    params={
        "model": Choice("small", tuple(MODELS), "the full one is finer, slower and 176 MB"),
    },
    resolution=512,
    weights=tuple(MODELS.values()),
)
