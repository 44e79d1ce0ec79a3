"""The nodes that prepare hints, run by the host."""

from typing import Any

import cv2
import numpy as np
import pytest

from .client import HostClient
from .server import HostServer

GREY = 0x808080


@pytest.fixture
def run(client: HostClient):
    def results(class_type: str, show: str, before: dict[str, Any], **inputs: Any) -> Any:
        """What `show` makes of the node's output; `before` are the nodes it is connected to."""
        prompt = {
            **before,
            "8": {"class_type": class_type, "inputs": inputs},
            "9": {"class_type": show, "inputs": {SHOWS[show]: ["8", 0]}},
        }
        result = client.queue(prompt)
        assert result.status == "success", result.message()
        return result.texts("9") or client.images(result, "9")

    return results


SHOWS = {"PreviewImage": "images", "PreviewAny": "source"}


def empty(width: int, height: int, count: int = 1) -> dict[str, Any]:
    """A grey picture, as node 1."""
    inputs = {"width": width, "height": height, "batch_size": count, "color": GREY}
    return {"1": {"class_type": "EmptyImage", "inputs": inputs}}


def test_a_hint_is_fitted_line_by_line(run, host: HostServer) -> None:
    page = np.zeros((256, 256), np.uint8)
    cv2.circle(page, (128, 128), 90, 255)
    name = host.save_input("drawn.png", np.repeat(page[..., None], 3, axis=-1))
    load = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    fit = {"width": 192, "height": 128, "fit": "fill", "resampling": "auto"}
    (hint,) = run("CLDM_FitHint", "PreviewImage", load, image=["1", 0], **fit)
    assert hint.shape == (128, 192, 3)
    assert np.unique(hint).tolist() == [0, 255]
    assert cv2.connectedComponents(hint[..., 0])[0] == 2


def test_masked_pixels_of_a_batch_are_black(run) -> None:
    mask = {"value": 1.0, "width": 64, "height": 64}
    before = {**empty(64, 64, count=2), "2": {"class_type": "SolidMask", "inputs": mask}}
    inputs = {"image": ["1", 0], "mask": ["2", 0], "convention": "black (union repaint)"}
    hints = run("CLDM_InpaintHint", "PreviewImage", before, **inputs)
    assert [hint.max() for hint in hints] == [0, 0]


@pytest.mark.parametrize(("fit", "resolution"), [("crop", "512"), ("fill", "432")])
def test_the_resolution_for_an_annotator(run, fit: str, resolution: str) -> None:
    inputs = {"image": ["1", 0], "width": 768, "height": 512, "fit": fit}
    shown = run("CLDM_PixelPerfect", "PreviewAny", empty(1920, 1080), **inputs)
    assert shown == [resolution]


def test_a_number_is_a_curve_too(run) -> None:
    number = {"1": {"class_type": "PrimitiveFloat", "inputs": {"value": 0.5}}}
    assert run("CLDM_CurveFromList", "PreviewAny", number, values=["1", 0]) == ["0.5"]
