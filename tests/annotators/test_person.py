"""The mask of people: what the network gets, what is made of its answer, and the real network."""

import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, _person, annotate, keeper, weights

from . import real_weights


class Interpreter:
    """Gives what it was given: its red channel."""

    def get_input_details(self) -> list:
        return [{"index": 0}]

    def get_output_details(self) -> list:
        return [{"index": 1}]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        self.given = value

    def invoke(self) -> None:
        self.answer = self.given[..., :1]

    def get_tensor(self, index: int) -> np.ndarray:
        return self.answer


@pytest.fixture
def echo(monkeypatch, tmp_path) -> Interpreter:
    net = Interpreter()

    @contextmanager
    def kept(key, build, device):
        yield net

    monkeypatch.setattr(keeper, "kept", kept)
    monkeypatch.setattr(_person, "needed", lambda *_, **__: None)
    with weights.given(_person.WEIGHTS, tmp_path / "selfie_segmentation.tflite"):
        yield net


def test_network_gets_a_square_from_0_to_1(echo):
    annotate("person", np.full((30, 40, 3), 255, np.uint8))
    assert echo.given.shape == (1, 256, 256, 3)
    assert echo.given.dtype == np.float32
    assert echo.given.max() == 1


def test_mask_has_the_pictures_size(echo):
    image = np.zeros((300, 500, 3), np.uint8)
    image[:, 250:, 0] = 255
    hint = annotate("person", image, resolution=0)
    assert hint.shape == (300, 500, 3)
    assert np.array_equal(hint[..., 0], hint[..., 2])
    assert hint[:, 255:].min() == 255
    assert hint[:, :245].max() == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(AnnotatorError, match="Install it with: pip install ai-edge-litert"):
        annotate("person", np.zeros((8, 8, 3), np.uint8))


def test_a_missing_file_is_named_with_where_to_get_it(monkeypatch, no_network):
    monkeypatch.setattr(_person, "needed", lambda *_, **__: None)
    with pytest.raises(AnnotatorError, match=r"Get it from https://pypi.org/project/mediapipe/0"):
        annotate("person", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.weights
def test_real_weights_find_the_astronaut():
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    data = pytest.importorskip("skimage.data", reason="needs the pictures of scikit-image")
    path = real_weights.file("selfie_segmentation.tflite")
    astronaut = cv2.imread(str(Path(data.__file__).parent / "astronaut.png"))[..., ::-1]
    with weights.given(_person.WEIGHTS, path):
        mask = annotate("person", astronaut)[..., 0]
    assert mask[200:420, 120:260].min() > 200  # the suit
    assert mask[50:200, 380:430].max() < 50  # the shuttle
