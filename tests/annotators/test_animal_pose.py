"""Animal poses held against comfyui_controlnet_aux on recorded outputs of the networks."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, annotate, pose_simcc
from controlnet_pack.annotators import _animal_pose as animal_pose
from controlnet_pack.annotators.keypoints import Frame, Keypoint, from_json, to_json
from controlnet_pack.annotators.pose import poses_in
from controlnet_pack.annotators.skeleton import draw

from .pose_scenes import Session, animal_output, picture, simcc_output

GOLDEN = json.loads((Path(__file__).parent / "data" / "poses.json").read_text())["animals"]
ANIMAL = tuple(Keypoint(5.0 + 4 * number, 9.0 + number**2 / 5) for number in range(17))


@pytest.fixture
def sessions(monkeypatch):
    """sessions(seed): the networks give that seed's outputs."""

    def use(seed):
        @contextlib.contextmanager
        def session(weights, device):
            if weights is animal_pose.FINDER:
                yield Session(lambda x: [animal_output(seed)], [])
            else:
                yield Session(lambda x: simcc_output(seed, len(x), 17, (512, 512)), [])

        monkeypatch.setattr(animal_pose, "session", session)
        monkeypatch.setattr(pose_simcc, "AT_ONCE", 99)  # as the reference

    return use


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["seed"]))
def test_animals_are_the_references(sessions, case):
    sessions(case["seed"])
    image = picture(case["seed"], case["height"], case["width"])
    (frame,) = animal_pose.detect(image[None])
    found = [[[point.x, point.y] for point in animal] for animal in frame.animals]
    assert len(found) == len(case["animals"]) > 0
    assert np.array(found) == pytest.approx(np.array(case["animals"]), abs=1e-3)
    assert frame.people == ()


def test_hint_is_the_drawing(sessions):
    sessions(1)
    image = picture(1, 90, 120)
    (frame,) = poses_in(image, kind="animal_pose", resolution=0)
    assert np.array_equal(annotate("animal_pose", image, resolution=0), draw(frame))


def test_animals_are_written_in_threes_and_read_again():
    frame = Frame(90, 80, (), (ANIMAL, (None, *ANIMAL[1:])))
    written = to_json(frame)
    assert written["version"] == "ap10k"
    assert written["animals"][0][1] == [9.0, 9.2, 1.0]
    assert from_json(json.loads(json.dumps(written))) == frame


def test_animals_stretch_with_the_frame():
    frame = Frame(90, 80, (), (ANIMAL,)).resized(180, 80)
    assert frame.animals[0][1] == Keypoint(18.0, 9.2)


def test_a_line_is_left_out_where_an_end_is_not_seen():
    whole = draw(Frame(90, 80, (), (ANIMAL,)))
    lacking = draw(Frame(90, 80, (), ((*ANIMAL[:16], None),)))
    hind = (255, 255, 100)  # from point 15 to 16, the last that is drawn there
    assert (whole == hind).all(axis=-1).any()
    assert not (lacking == hind).all(axis=-1).any()


def test_an_animal_has_17_points():
    content = {"canvas_width": 9, "canvas_height": 9, "animals": [[[1, 2, 1]] * 16]}
    with pytest.raises(AnnotatorError, match="animal 1 has 16 points, expected 17"):
        from_json(content)
    with pytest.raises(AnnotatorError, match="animals have to be a list, but are an object"):
        from_json({**content, "animals": {}})
