"""The annotators as functions: what the page shows, and poses as OpenPose JSON."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, detect_pose, draw_pose
from controlnet_pack.annotators import pose as poses
from controlnet_pack.annotators.files import read_picture, write_hint
from controlnet_pack.annotators.keypoints import Frame, Keypoint, Person
from controlnet_pack.annotators.skeleton import draw

PACK = "controlnet_pack"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "annotators.md"
ARM = (None, None, Keypoint(4, 6, 0.5), Keypoint(16, 30, 0.75), *[None] * 14)
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _someone(monkeypatch):
    """Whoever looks sees an arm in each picture."""

    def detect(images, **_):
        height, width = images.shape[1:3]
        return [Frame(20, 40, (Person(ARM),)).resized(width, height) for _ in images]

    for name in poses.DETECTORS:
        monkeypatch.setitem(poses.DETECTORS, name, detect)


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    write_hint(Path("photo.png"), PICTURE)
    Path("example.py").write_text(example.replace("from annot", f"from {PACK}.annot"))
    runpy.run_path("example.py")
    assert "low_threshold" in capsys.readouterr().out
    assert read_picture(Path("edges.png")).shape == (40, 20, 3)
    assert read_picture(Path("skeleton.png")).shape == (2048, 1024, 3)


def test_poses_are_openpose_json():
    (found,) = json.loads(json.dumps(detect_pose(PICTURE, resolution=0)))
    (one,) = found["people"]
    assert (found["canvas_width"], found["canvas_height"]) == (20, 40)
    assert one["pose_keypoints_2d"][6:12] == [4, 6, 1, 16, 30, 1]
    assert one["hand_left_keypoints_2d"] is None
    assert len(detect_pose(np.stack([PICTURE] * 3))) == 3


def test_confidence_is_written_where_it_is_asked_for():
    (found,) = detect_pose(PICTURE, resolution=0, confidence=True)
    assert found["people"][0]["pose_keypoints_2d"][6:12] == [4, 6, 0.5, 16, 30, 0.75]


def test_parts_that_are_not_asked_for_are_left_out():
    (found,) = detect_pose(PICTURE, body=False)
    assert found["people"][0]["pose_keypoints_2d"] is None


def test_poses_are_drawn_at_any_size():
    found = detect_pose(np.stack([PICTURE] * 2))
    frame = Frame(20, 40, (Person(ARM),))
    assert np.array_equal(draw_pose(found), [draw(frame)] * 2)
    large = draw_pose(found, height=80, xinsir=True)
    assert np.array_equal(large, [draw(frame, size=(40, 80), xinsir=True)] * 2)
    assert not draw_pose(found, body=False).any()


def test_poses_are_drawn_from_a_text():
    found = detect_pose(PICTURE)
    assert np.array_equal(draw_pose(json.dumps(found)), draw_pose(found))
    with pytest.raises(AnnotatorError, match="The pose isn't JSON"):
        draw_pose("[1")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: detect_pose(PICTURE, resolution=-1), "resolution is -1, but it has to be from 0"),
        (lambda: detect_pose(PICTURE, resolution=9.5), "resolution is 9.5, but it has to be a who"),
        (lambda: detect_pose(PICTURE, kind="opnpose"), "There is no pose detector 'opnpose'; did "),
        (lambda: draw_pose(detect_pose(PICTURE), width=-8), "width is -8, but it has to be from 0"),
        (lambda: draw_pose(detect_pose(PICTURE), height=0.5), "height is 0.5, but it has to be a "),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(AnnotatorError, match=f"^{sentence}"):
        call()
