"""DWPose held against comfyui_controlnet_aux on recorded outputs of its networks."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, Weights, annotate, keeper, weights
from controlnet_pack.annotators import _dwpose as dwpose
from controlnet_pack.annotators.pose import poses_in
from controlnet_pack.annotators.pose_simcc import crops, seen_in
from controlnet_pack.annotators.pose_yolox import boxes_of, letterboxed

from . import tiny_onnx
from .pose_scenes import Session, picture, simcc_output, yolox_output

GOLDEN = json.loads((Path(__file__).parent / "data" / "poses.json").read_text())["dwpose"]


@pytest.fixture
def sessions(monkeypatch):
    """sessions(seed): the networks give that seed's outputs; gives the list of their inputs."""

    def use(seed, output=None):
        seen = []
        output = yolox_output(seed) if output is None else output

        @contextlib.contextmanager
        def session(weights, device):
            if weights is dwpose.PEOPLE:
                yield Session(lambda x: [output], seen)
            else:
                yield Session(lambda x: simcc_output(seed, len(x)), seen)

        monkeypatch.setattr(dwpose, "session", session)
        return seen

    return use


def places(part):
    return [point and pytest.approx([point.x, point.y], abs=1e-3) for point in part]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["seed"]))
def test_people_are_the_references(sessions, case):
    seen = sessions(case["seed"])
    image = picture(case["seed"], case["height"], case["width"])
    (frame,) = dwpose.detect(image[None])
    assert [[places(part) for part in person.parts] for person in frame.people] == case["people"]
    for pixels, (shape, mean, rms) in zip(seen, case["inputs"], strict=True):
        assert list(pixels.shape) == shape
        assert pixels.dtype == np.float32
        assert pixels.astype(float).mean() == pytest.approx(mean, abs=1e-3)
        assert np.sqrt((pixels.astype(float) ** 2).mean()) == pytest.approx(rms, rel=1e-4)


def test_nobody_is_an_empty_frame(sessions):
    seen = sessions(0, output=np.zeros((1, 8400, 85), np.float32))
    (frame,) = poses_in(picture(0, 60, 40), kind="dwpose")
    assert (frame.width, frame.height, frame.people) == (40, 60, ())
    assert len(seen) == 1
    assert not annotate("dwpose", picture(0, 60, 40), resolution=0).any()


def test_letterbox_keeps_the_aspect_and_fills_with_grey():
    square, ratio = letterboxed(np.full((50, 100, 3), 7, np.uint8))
    assert ratio == 6.4
    assert square.shape == (3, 640, 640)
    assert (square[:, :320] == 7).all()
    assert (square[:, 320:] == 114).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2000), (2000, 1)])
def test_letterbox_of_a_strip(height, width):
    assert letterboxed(np.zeros((height, width, 3), np.uint8))[0].shape == (3, 640, 640)


def test_of_two_boxes_on_one_another_the_surer_one_stays():
    output = np.zeros((8400, 85), np.float32)
    for row, score in ((8000, 0.6), (8001, 0.9), (8300, 0.5), (8399, 0.2)):
        output[row, 2:6] = [np.log(10), np.log(10), 1, score]
    output[8001, 0] = -1  # the same place as cell 8000
    boxes = boxes_of(output, 2.0)
    assert np.rint(boxes).tolist() == [[-80, -80, 80, 80], [-80, 160, 80, 320]]


def test_hands_and_face_can_be_left_out(sessions):
    sessions(0)
    (frame,) = poses_in(picture(0, 300, 420), kind="dwpose", hands=False, face=False)
    assert frame.people
    assert not any(one.left_hand or one.right_hand or one.face for one in frame.people)
    assert any(one.body for one in frame.people)


def test_without_onnxruntime_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AnnotatorError, match="Install it with: pip install onnxruntime"):
        annotate("dwpose", picture(0, 16, 16))


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_a_file_may_fix_how_many_people_go_through_it_together(tmp_path, batch):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    boxes = np.array([[4 * n, n, 4 * n + 20, n + 30] for n in range(9)], np.float64)
    image, counts = picture(0, 60, 80), []

    def decode(across, down, areas):
        counts.append(len(across))
        assert len(across) == len(down) == len(areas)
        return [*across]

    record = Weights("", "net.onnx", "", None, None, "MIT", True)
    path = tiny_onnx.write(tmp_path / "net.onnx", batch, copies=2)
    with weights.given(record, path), keeper.session(record, "cpu") as net:
        found = seen_in(image, boxes, net, decode)
    assert np.array_equal(found, crops(image, boxes)[0])  # which the network gives back
    assert counts == {"batch": [8, 1], 1: [1] * 9, 4: [4, 4, 1]}[batch]
