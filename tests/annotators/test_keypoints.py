"""OpenPose JSON in and out, and what is refused."""

import json

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError
from controlnet_pack.annotators.keypoints import (
    Frame,
    Keypoint,
    Person,
    frames_from_json,
    from_json,
    to_json,
)


def part(count: int, confidence: float = 1.0) -> list[float]:
    """Points (10, 20), (11, 21) ... as a file has them."""
    return [number for i in range(count) for number in (10.0 + i, 20.0 + i, confidence)]


def pose(*, width=100, height=200, **parts) -> dict:
    return {"people": [parts], "canvas_width": width, "canvas_height": height}


def refused(content, sentence: str, **options) -> None:
    with pytest.raises(AnnotatorError) as caught:
        frames_from_json(content, **options)
    assert str(caught.value) == sentence


def test_points_are_read_in_pixels():
    frame = from_json(pose(pose_keypoints_2d=part(18), hand_left_keypoints_2d=part(21)))
    assert (frame.width, frame.height) == (100, 200)
    assert frame.people[0].body[1] == Keypoint(11, 21)
    assert len(frame.people[0].left_hand) == 21
    assert frame.people[0].right_hand == frame.people[0].face == ()


def test_points_in_fractions_are_brought_to_pixels():
    frame = from_json(pose(face_keypoints_2d=[0.5, 0.25, 1, 1.0, -1.0, 1]))
    assert frame.people[0].face == (Keypoint(50, 50), Keypoint(100, -200))


def test_fractions_may_lie_outside_of_the_canvas():
    frame = from_json(pose(face_keypoints_2d=[0.5, 0.25, 1, 1.5, -0.25, 1]))
    assert frame.people[0].face == (Keypoint(50, 50), Keypoint(150, -50))


def test_one_point_beyond_2_makes_all_of_them_pixels():
    frame = from_json(pose(face_keypoints_2d=[0.5, 0.25, 1, 2.5, 0, 1]))
    assert frame.people[0].face == (Keypoint(0.5, 0.25), Keypoint(2.5, 0))


def test_on_a_small_canvas_one_point_beyond_1_does():
    frame = from_json(pose(face_keypoints_2d=[0.5, 0.25, 1, 1.5, 0, 1], width=16, height=16))
    assert frame.people[0].face == (Keypoint(0.5, 0.25), Keypoint(1.5, 0))


def test_no_confidence_means_not_seen():
    frame = from_json(pose(face_keypoints_2d=[5, 6, 0, 7, 8, 0.25]))
    assert frame.people[0].face == (None, Keypoint(7, 8, 0.25))


def test_points_in_threes_and_arrays_are_read_alike():
    flat = from_json(pose(face_keypoints_2d=part(2)))
    assert from_json(pose(face_keypoints_2d=[[10, 20, 1], [11, 21, 1]])) == flat
    assert from_json(pose(face_keypoints_2d=np.array(part(2)).reshape(2, 3))) == flat


def test_what_is_written_is_read_again():
    content = pose(
        pose_keypoints_2d=[0.0, 0.0, 0.0, *part(17)],
        hand_left_keypoints_2d=part(21),
        hand_right_keypoints_2d=None,
        face_keypoints_2d=part(70),
    )
    assert to_json(from_json(content)) == content
    assert from_json(json.loads(json.dumps(to_json(from_json(content))))) == from_json(content)


def test_confidence_is_written_as_1_unless_asked_for():
    frame = Frame(9, 9, (Person(face=(Keypoint(1, 2, 0.5), None)),))
    assert to_json(frame)["people"][0]["face_keypoints_2d"] == [1, 2, 1.0, 0, 0, 0]
    known = to_json(frame, confidence=True)
    assert known["people"][0]["face_keypoints_2d"] == [1, 2, 0.5, 0, 0, 0]


def test_body_of_coco_gets_a_neck():
    body = from_json(pose(pose_keypoints_2d=part(17, 0.5))).people[0].body
    assert len(body) == 18
    assert body[0] == Keypoint(10, 20, 0.5)
    assert body[1] == Keypoint(15.5, 25.5, 0.5)  # between the shoulders, 5 and 6
    assert body[2] == Keypoint(16, 26, 0.5)  # right shoulder
    assert body[17] == Keypoint(13, 23, 0.5)  # left ear


def test_coco_without_a_shoulder_has_no_neck():
    numbers = part(17)
    numbers[3 * 5 + 2] = 0
    assert from_json(pose(pose_keypoints_2d=numbers)).people[0].body[1] is None


def test_body_25_loses_the_mid_hip_and_the_feet():
    body = from_json(pose(pose_keypoints_2d=part(25))).people[0].body
    assert [point.x - 10 for point in body] == [*range(8), *range(9, 19)]


def test_points_after_the_18th_are_left_out():
    body = from_json(pose(pose_keypoints_2d=part(20))).people[0].body
    assert body == from_json(pose(pose_keypoints_2d=part(18))).people[0].body


def test_a_list_of_frames_and_a_text():
    two = [pose(face_keypoints_2d=part(1)), pose(width=7)]
    assert [frame.width for frame in frames_from_json(two)] == [100, 7]
    assert frames_from_json(json.dumps(two)) == frames_from_json(two)
    assert frames_from_json(two[0]) == frames_from_json(two)[:1]


def test_size_serves_files_without_a_canvas():
    assert from_json({"people": []}, size=(30, 40)) == Frame(30, 40)
    assert from_json(pose(), size=(30, 40)).width == 100


def test_only_some_parts():
    frame = from_json(pose(pose_keypoints_2d=part(18), face_keypoints_2d=part(68)))
    assert frame.only(body=False).people[0].body == ()
    assert len(frame.only(body=False).people[0].face) == 68
    assert frame.only(face=False, hands=False).people[0].face == ()


def test_refusals():
    refused(" ", "There is no pose: connect poses, or give OpenPose JSON as text.")
    refused("[1", "The pose isn't JSON: Expecting ',' delimiter in line 1, column 3.")
    refused(3, "A pose has to be a JSON object with people in it, but it is a int.")
    refused([], "The list of poses is empty: it has to have one for each picture.")
    refused(
        {"people": []},
        "The pose's canvas_width and canvas_height are None and None, expected the size in pixels "
        "of the picture that the points belong to.",
    )
    refused(
        {"people": {}, "canvas_width": 1, "canvas_height": 1},
        "The pose's people have to be a list, but are an object.",
    )
    refused(
        {"people": ["x"], "canvas_width": 1, "canvas_height": 1},
        "Person 1 of the pose has to be a JSON object, but is a text.",
    )


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            {"face_keypoints_2d": "x"},
            "face_keypoints_2d of person 1 has to be a list of numbers, but is a text.",
        ),
        (
            {"face_keypoints_2d": [1, 2]},
            "face_keypoints_2d of person 1 has 2 numbers, expected x, y and confidence for each "
            "point.",
        ),
        (
            {"face_keypoints_2d": [1, float("nan"), 1]},
            "face_keypoints_2d of person 1 holds nan, which can't be a position in pixels.",
        ),
        (
            {"face_keypoints_2d": [1, 1e9, 1]},
            "face_keypoints_2d of person 1 holds 1000000000.0, which can't be a position in "
            "pixels.",
        ),
        (
            {"hand_right_keypoints_2d": part(20)},
            "The right hand of person 1 has 20 points, expected 21.",
        ),
        (
            {"pose_keypoints_2d": part(16)},
            "The body of person 1 has 16 points, expected 18 (OpenPose's COCO, others may "
            "follow), 17 (COCO) or 25 (BODY_25).",
        ),
    ],
)
def test_parts_that_are_refused(parts, sentence):
    refused(pose(**parts), sentence)
