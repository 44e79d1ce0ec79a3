"""BlazePose: the arithmetic around its networks, and MediaPipe's own weights on real pictures."""

import math
import sys

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, annotate, tflite, weights
from controlnet_pack.annotators import _blazepose as blazepose
from controlnet_pack.annotators.files import read_picture
from controlnet_pack.annotators.keypoints import Keypoint, Person
from controlnet_pack.annotators.pose import poses_in
from controlnet_pack.annotators.pose_blaze import (
    Area,
    anchors,
    body_area,
    corrected,
    detections,
    face_area,
    hand_area,
    turned,
    whole,
)

from . import real_weights


def points(*places) -> np.ndarray:
    return np.array(places, np.float32)


@pytest.mark.parametrize(
    ("side", "strides", "count"),
    [(224, (8, 16, 32, 32, 32), 2254), (192, (8, 16, 16, 16), 2016), (128, (8, 16, 16, 16), 896)],
)
def test_there_is_an_anchor_for_each_value_of_the_networks(side, strides, count):
    cells = anchors(side, strides)
    assert cells.shape == (count, 2)
    assert cells[0].tolist() == cells[1].tolist() == pytest.approx([4 / side, 4 / side])
    assert cells[2].tolist() == pytest.approx([12 / side, 4 / side])


def test_an_area_is_cut_out_and_its_points_come_back():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:50] = 200
    area = Area(40, 30, 20)
    assert (area.out_of(image, 20, edge=True) == 200).all()
    assert area.in_picture(points((0, 0), (1, 0.5))).tolist() == [[30, 20], [50, 30]]


def test_a_turned_area_has_its_own_upwards():
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, 30:] = 200  # the right half
    quarter = Area(30, 30, 40, math.pi / 2)
    found = quarter.out_of(image, 40, edge=True)
    assert (found[:18] == 200).all()
    assert (found[22:] == 0).all()
    assert quarter.in_picture(points((0.5, 0))).tolist() == [pytest.approx([50, 30])]


def test_beyond_the_picture_is_black_or_its_edge():
    image = np.full((10, 20, 3), 200, np.uint8)
    assert whole(image) == Area(10, 5, 20)
    assert (whole(image).out_of(image, 20, edge=False)[:4] == 0).all()
    assert (whole(image).out_of(image, 20, edge=True) == 200).all()


def test_detections_that_overlap_become_one_as_sure_as_they_are():
    cells = points((0.2, 0.2), (0.2, 0.2), (0.8, 0.8), (0.5, 0.5))
    values = np.array([[0, 0, 10, 10, 0, 0], [2, 0, 10, 10, 2, 0]] + [[0, 0, 10, 10, 5, 5]] * 2)
    logits = np.array([math.log(3), 0.001, 5, -5])  # 0.75, 0.5, nearly 1, nearly 0
    found = detections(values.astype(np.float32), logits, cells, 100)
    assert len(found) == 2
    assert found[0].tolist() == [pytest.approx(one) for one in ([0.8, 0.8], [0.1, 0.1], [0.85] * 2)]
    assert found[1][0].tolist() == pytest.approx([0.208, 0.2], abs=1e-4)


def test_how_sure_a_detection_has_to_be():
    values, cells = np.ones((3, 18), np.float32), points((0.1, 0.1), (0.5, 0.5), (0.9, 0.9))
    logits = np.array([math.log(3), 0, -2])  # 0.75, 0.5, 0.12
    found = [len(detections(values, logits, cells, 10, least)) for least in (0.1, 0.5, 0.6, 1)]
    assert found == [3, 2, 1, 0]


def test_nothing_sure_is_nothing():
    assert detections(np.zeros((4, 18), np.float32), np.full(4, -1.0), np.zeros((4, 2)), 10) == []


@pytest.mark.parametrize(
    ("end", "angle"), [((0, -9), 0), ((9, 0), math.pi / 2), ((-9, 0), -math.pi / 2)]
)
def test_angle_of_a_body_that_lies(end, angle):
    assert turned(points((0, 0))[0], points(end)[0], math.pi / 2) == pytest.approx(angle)


def test_areas_around_bodies_hands_and_faces():
    body = points((0, 0), (0, 0), (50, 60), (50, 20))
    assert body_area(body) == Area(50, 60, 100, 0)
    hand = points((50, 60), (20, 10), (50, 70), (0, 0), (50, 50))
    assert hand_area(hand) == Area(50, 55, 52, 0)
    face = points((50, 60), (20, 30), (40, 55), (60, 55))
    assert face_area(face) == Area(50, 60, 45, 0)


def test_points_move_to_where_the_map_is_hot_and_stay_where_it_is_not():
    maps = np.full((8, 8, 2), -20.0)
    maps[3, 5, 0] = 20
    found = corrected(points((0.5, 0.5), (0.25, 0.5)), maps)
    assert found.tolist() == [pytest.approx([5 / 8, 3 / 8]), [0.25, 0.5]]
    assert corrected(points((1.5, 0.5)), maps[..., :1]).tolist() == [[1.5, 0.5]]


def person(**wrists) -> Person:
    body = [None] * 18
    for name, place in wrists.items():
        body[{"right": 4, "left": 7}[name]] = Keypoint(*place)
    return Person(body=tuple(body))


def test_a_hand_is_of_whom_has_the_nearest_wrist():
    people = [person(right=(100, 100)), person(left=(10, 10))]
    hand = (Keypoint(12, 10),) * 21
    found = blazepose.with_hand(people, hand, Area(12, 10, 20), False)
    assert found == [people[0], Person(body=people[1].body, left_hand=hand)]


def test_a_hand_of_nobody_is_of_someone_else():
    hand = (Keypoint(50, 50),) * 21
    found = blazepose.with_hand([person(left=(10, 10))], hand, Area(50, 50, 20), True)
    assert found[1] == Person(body=(None,) * 18, left_hand=hand)


def test_a_second_hand_at_one_wrist_is_of_someone_else():
    hand = (Keypoint(12, 10),) * 21
    people = [person(left=(10, 10))]
    for _ in range(2):
        people = blazepose.with_hand(people, hand, Area(12, 10, 20), True)
    assert [bool(one.left_hand) for one in people] == [True, True]


@pytest.mark.parametrize(("side", "is_left"), [(0.1, True), (0.9, False)])
def test_a_left_hand_in_a_mirror_is_a_right_one(side, is_left):
    values, logits = np.zeros((2016, 18), np.float32), np.full((2016, 1), -9.0)
    values[:, 2:4], logits[1000] = 50, 9
    nets = {
        blazepose.HAND_FINDER: lambda _: [values, logits],
        blazepose.HAND_POINTS: lambda _: [np.zeros(63), np.ones(1), np.array([side]), None],
    }
    ((part, _, found),) = blazepose.find_hands(np.zeros((90, 90, 3), np.uint8), nets)
    assert len(part) == 21
    assert found is is_left


def test_without_its_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(AnnotatorError, match="Install it with: pip install ai-edge-litert"):
        annotate("blazepose", np.zeros((8, 8, 3), np.uint8))


def test_without_weights_it_says_where_they_are(no_network, monkeypatch):
    monkeypatch.setattr(tflite, "needed", lambda *_, **__: None)
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")
    with pytest.raises(AnnotatorError, match=r"pose_detection\.tflite .*pypi\.org/project/media"):
        annotate("blazepose", np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def real(monkeypatch):
    """MediaPipe's own weights."""
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    for record in blazepose.WEIGHTS:
        real_weights.file(f"mediapipe/modules/{record.file}")
    monkeypatch.setattr(weights, "folders", lambda: [real_weights.FOLDER])
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")


@pytest.fixture
def astronaut():
    return pytest.importorskip("skimage.data", reason="needs scikit-image's pictures").astronaut()


@pytest.mark.weights
def test_astronaut(real, astronaut):
    """Where the eyes, the mouth and the shoulders are was read off the picture."""
    (frame,) = poses_in(astronaut, kind="blazepose")
    (one,) = frame.people
    assert one.left_hand == one.right_hand == ()
    for part, index, x, y in (
        (one.body, 0, 226, 127),  # nose
        (one.body, 2, 112, 241),  # right shoulder
        (one.body, 5, 305, 256),  # left shoulder
        (one.face, 68, 205, 112),  # right pupil
        (one.face, 69, 248, 110),  # left pupil
        (one.face, 8, 226, 176),  # chin
    ):
        assert (part[index].x, part[index].y) == pytest.approx((x, y), abs=15)


@pytest.mark.weights
def test_small_and_turned_pictures_still_have_their_face(real, astronaut):
    quarter = np.ascontiguousarray(np.rot90(astronaut))
    (upright,) = poses_in(astronaut, kind="blazepose")
    found = poses_in(quarter, kind="blazepose")[0].people
    pupil = next(one.face[68] for one in found if one.face)
    expected = upright.people[0].face[68]
    assert (pupil.x, pupil.y) == pytest.approx((expected.y, 511 - expected.x), abs=15)


@pytest.mark.weights
def test_two_hands(real):
    """Where the wrists and the tips of the fingers are was read off the picture."""
    (frame,) = poses_in(read_picture(real_weights.file("two_hands.webp")), kind="blazepose")
    (one,) = frame.people
    for part, index, x, y in (
        (one.right_hand, 0, 115, 335),  # wrist
        (one.right_hand, 8, 133, 203),  # tip of the forefinger, on the bottle
        (one.left_hand, 0, 225, 372),  # wrist
        (one.left_hand, 8, 141, 282),  # tip of the forefinger
        (one.body, 0, 195, 155),  # nose
    ):
        assert (part[index].x, part[index].y) == pytest.approx((x, y), abs=18)


@pytest.mark.weights
def test_whole_body(real):
    """Where the joints are was read off the picture."""
    (frame,) = poses_in(read_picture(real_weights.file("whole_body.webp")), kind="blazepose")
    (one,) = frame.people
    assert None not in one.body
    for index, x, y in (
        (0, 208, 57),  # nose
        (2, 203, 98),  # right shoulder
        (5, 277, 92),  # left shoulder
        (3, 188, 155),  # right elbow
        (6, 288, 148),  # left elbow
        (9, 195, 285),  # right knee
        (10, 196, 355),  # right ankle
        (13, 279, 365),  # left ankle
    ):
        assert (one.body[index].x, one.body[index].y) == pytest.approx((x, y), abs=18)


@pytest.mark.weights
def test_nobody_in_a_flat_picture(real):
    (frame,) = poses_in(np.full((64, 90, 3), 128, np.uint8), kind="blazepose")
    assert frame.people == ()
