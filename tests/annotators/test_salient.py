"""The salient object: resampling and stretching as rembg does, and the real network."""

import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, _salient, annotate, keeper, weights

from ..cldm_core.seeded import seeded_array
from . import real_weights

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())["hints"]
PICTURE = np.random.default_rng(0).integers(0, 200, (45, 61, 3), dtype=np.uint8)


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture
def answer(monkeypatch) -> list:
    """What the network is made to give; which weights and what it was given are appended."""
    told = [seeded_array((1, 1, 320, 320), "mask", 3) + np.float32(0.5)]

    @contextmanager
    def session(record, device):
        def run(_, feed):
            told.extend([record, feed["input.1"]])
            return [told[0]]

        yield SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="input.1")], run=run)

    monkeypatch.setattr(keeper, "session", session)
    return told


def test_input_has_the_references_bits():
    assert digest(_salient.prepared(PICTURE)) == GOLDEN["salient input"]


def test_mask_has_the_references_bits(answer):
    assert digest(annotate("salient", PICTURE, resolution=0)) == GOLDEN["salient"]


def test_model_chooses_the_weights(answer):
    annotate("salient", PICTURE, model="full")
    assert answer[1].file == "u2net.onnx"


def test_black_picture_and_even_mask_do(answer):
    answer[0] = np.zeros((1, 1, 320, 320), np.float32)
    hint = annotate("salient", np.zeros((9, 5, 3), np.uint8), resolution=0)
    assert np.array_equal(hint, np.zeros((9, 5, 3), np.uint8))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AnnotatorError, match="Install it with: pip install onnxruntime"):
        annotate("salient", PICTURE)


@pytest.mark.weights
def test_real_weights_find_the_astronaut():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    data = pytest.importorskip("skimage.data", reason="needs the pictures of scikit-image")
    path = real_weights.file("u2netp.onnx")
    astronaut = cv2.imread(str(Path(data.__file__).parent / "astronaut.png"))[..., ::-1]
    with weights.given(_salient.MODELS["small"], path):
        mask = annotate("salient", astronaut, device="cpu")[..., 0]
    assert mask.shape == (512, 512)
    assert mask[300:480, 120:280].min() > 200  # the suit
    assert mask[:150, 340:].max() < 50  # the shuttle and the wall behind
    assert 0.5 < (mask > 127).mean() < 0.6
