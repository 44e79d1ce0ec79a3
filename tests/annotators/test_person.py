"""The mask of people: what the network gets, what is made of its answer, and the real network."""

import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, _person, annotate, tflite, weights

from . import real_weights


class Echo:
    """A network that gives what it was given: its red channel."""

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        self.given = pixels
        return [pixels[..., :1]]


@pytest.fixture
def echo(monkeypatch) -> Echo:
    net = Echo()

    @contextmanager
    def networks(records, device):
        yield {_person.WEIGHTS: net}

    monkeypatch.setattr(_person, "networks", networks)
    return net


def test_network_gets_a_square_from_0_to_1(echo):
    annotate("person", np.full((30, 40, 3), 255, np.uint8))
    assert echo.given.shape == (256, 256, 3)
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
    monkeypatch.setattr(tflite, "needed", lambda *_, **__: None)
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")
    with pytest.raises(
        AnnotatorError, match=r"Get it from the wheel .* https://pypi.org/project/m"
    ):
        annotate("person", np.zeros((8, 8, 3), np.uint8))


def test_the_file_of_an_installed_mediapipe_is_found(monkeypatch, no_network, tmp_path):
    path = tmp_path / "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "mediapipe" / "__init__.py").touch()
    seen = []

    @contextmanager
    def kept(key, build, device):
        seen.extend(key)
        yield {_person.WEIGHTS: Echo()}

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tflite, "needed", lambda *_, **__: None)
    monkeypatch.setattr(tflite, "kept", kept)
    annotate("person", np.zeros((8, 8, 3), np.uint8))
    assert seen == [str(path)]


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
