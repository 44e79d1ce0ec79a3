"""Where people are, by MediaPipe's selfie segmentation: a white mask on black."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import RGB8, Annotator, Weights, needed
from .pictures import as_rgb

SIDE = 256
WEIGHTS = Weights(
    repository="",
    file="selfie_segmentation.tflite",
    revision="",
    bytes=249_505,
    sha256="9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
    licence="Apache-2.0",
    commercial=True,
    local_names=("mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",),
    source=(
        "https://pypi.org/project/mediapipe/0.10.21/#files (the wheel is a zip archive: "
        "mediapipe/modules/selfie_segmentation)"
    ),
)


def person(image: RGB8, device: Any) -> RGB8:
    """The mask (H, W, 3) of a picture (H, W, 3); grey where it isn't sure. On the CPU always."""
    import cv2

    from .keeper import kept
    from .weights import locate

    runtime = needed("ai_edge_litert.interpreter", to_install="ai-edge-litert")
    path = locate(WEIGHTS)

    def load() -> Any:
        net = runtime.Interpreter(model_path=str(path))
        net.allocate_tensors()
        return net

    height, width, _ = image.shape
    square = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    with kept(("person", str(path)), load, device) as net:
        net.set_tensor(net.get_input_details()[0]["index"], square[None].astype(np.float32) / 255)
        net.invoke()
        found = net.get_tensor(net.get_output_details()[0]["index"])[0, ..., 0]
    mask = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR)
    return as_rgb((mask * 255).round().clip(0, 255).astype(np.uint8))


ANNOTATOR = Annotator(
    name="person",
    title="Person (MediaPipe)",
    description="A mask of the people in the picture, white on black. Needs ai-edge-litert.",
    run=person,
    resolution=512,
    weights=(WEIGHTS,),
)
