"""Drawings of poses: the reference's pixels, any size, thicker sticks."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError
from controlnet_pack.annotators.keypoints import Frame, Keypoint, Person, from_json, to_json
from controlnet_pack.annotators.skeleton import (
    draw,
    draw_all,
    drawing_size,
    stick_scale,
)

# What controlnet_aux draws; see data/README.md.
GOLDEN = json.loads((Path(__file__).parent / "data" / "skeletons.json").read_text())


def people(width: int, height: int, seed: int) -> Frame:
    """Two people with every part, a fifth of the points unseen; some lie outside of the canvas."""
    rng = np.random.default_rng(seed)

    def part(count: int) -> tuple:
        places = rng.uniform(-0.04, 1.0, (count, 2)) * (width, height)
        seen = rng.random(count) > 0.2
        return tuple(
            Keypoint(float(x), float(y)) if is_seen else None
            for (x, y), is_seen in zip(places, seen, strict=True)
        )

    def person() -> Person:
        return Person(part(18), part(21), part(21), part(70))

    return Frame(width, height, (person(), person()))


def digest(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['width']}x{case['height']}")
def test_drawing_is_the_references(case):
    frame = people(case["width"], case["height"], case["seed"])
    assert digest(draw(frame, xinsir=case["xinsir"])) == case["sha256"]


def test_size_is_the_frames_own_or_the_one_asked_for():
    frame = people(40, 30, 0)
    assert draw(frame).shape == (30, 40, 3)
    assert draw(frame, size=(57, 91)).shape == (91, 57, 3)


def test_a_larger_drawing_is_drawn_not_enlarged():
    frame = people(60, 50, 1)
    stretched = to_json(frame)
    for person in stretched["people"]:
        for name, numbers in person.items():
            person[name] = [v * s for v, s in zip(numbers, (5, 5, 1) * 99, strict=False)]
    larger = from_json({**stretched, "canvas_width": 300, "canvas_height": 250})
    assert np.array_equal(draw(frame, size=(300, 250)), draw(larger))


def test_sticks_keep_their_width_and_xinsirs_are_thicker():
    body = [None] * 18
    body[1], body[2] = Keypoint(10, 50), Keypoint(90, 50)
    frame = Frame(100, 100, (Person(body=tuple(body)),))

    def height(picture: np.ndarray) -> int:
        return int(picture[:, picture.shape[1] // 2].any(axis=-1).sum())

    assert height(draw(frame)) == 9
    assert height(draw(frame, size=(900, 900))) == 9
    assert height(draw(frame, size=(900, 900), xinsir=True)) == 17


@pytest.mark.parametrize(
    ("size", "scale"),
    [((499, 100), 1), ((500, 9), 2), ((9, 999), 2), ((1000, 9), 3), ((5000, 9), 7), ((9000, 9), 7)],
)
def test_scale_of_xinsirs_sticks(size, scale):
    assert stick_scale(*size) == scale


def test_parts_can_be_left_out():
    frame = people(80, 80, 2)
    bodies = draw(frame.only(hands=False, face=False))
    assert np.array_equal(draw(frame, hands=False, face=False), bodies)
    assert not draw(frame, body=False, hands=False, face=False).any()
    assert set(np.unique(draw(frame, body=False, hands=False))) == {0, 255}


def test_nobody_is_black():
    assert not draw(Frame(20, 10)).any()
    assert not draw(Frame(20, 10, (Person(),))).any()


def test_all_frames_are_drawn_at_one_size():
    frames = [people(40, 30, 0), people(80, 60, 1)]
    assert np.array_equal(draw_all(frames)[1], draw(frames[1], size=(40, 30)))
    assert draw_all(frames, size=(90, 50), hands=False).shape == (2, 50, 90, 3)


@pytest.mark.parametrize(
    ("asked", "size"),
    [((0, 0), (40, 30)), ((80, 0), (80, 60)), ((0, 90), (120, 90)), ((5, 7), (5, 7))],
)
def test_a_side_of_0_follows_the_aspect(asked, size):
    assert drawing_size(Frame(40, 30), *asked) == size


def test_a_drawing_without_end_is_refused():
    with pytest.raises(AnnotatorError, match="would have 16384 x 16384000 pixels"):
        drawing_size(Frame(1, 1000), 16384, 0)
