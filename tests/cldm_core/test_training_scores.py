"""Scores of how well a picture follows its hint."""

import inspect
import math

import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS
from controlnet_pack.annotators.keypoints import Frame, Keypoint, Person
from controlnet_pack.annotators.skeleton import draw
from controlnet_pack.cldm_core import CldmError, ShapeError
from controlnet_pack.cldm_core.training.drawn_poses import JOINTS, keypoints_of
from controlnet_pack.cldm_core.training.scores import (
    SCORES,
    colour_error,
    depth_correlation,
    edge_f1,
    keypoint_distance,
    mask_iou,
    score_for,
    score_named,
)

SIZE = 32
PLANES = (edge_f1, mask_iou, depth_correlation, colour_error)


def line(column: int) -> np.ndarray:
    drawing = np.zeros((SIZE, SIZE, 3), np.uint8)
    drawing[:, column] = 255
    return drawing


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return np.repeat((255 * inside).astype(np.uint8)[..., None], 3, axis=-1)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def flat(*colour: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), colour, np.uint8)


# Two people whose longer side is 100: head, hands, feet.
STANDING = np.array([[50, 0, 1], [20, 50, 1], [80, 50, 1], [40, 100, 1], [60, 100, 1.0]])
BESIDE = STANDING + np.array([200, 0, 0])


def moved(person: np.ndarray, x: float, y: float) -> np.ndarray:
    return person + np.array([x, y, 0])


@pytest.mark.parametrize("score", PLANES, ids=lambda score: score.__name__)
def test_a_picture_is_like_itself(score) -> None:
    best = 0.0 if score is colour_error else 1.0
    for picture in (noise(), disc(16, 16, 8)):
        assert score(picture, picture) == pytest.approx(best)


@pytest.mark.parametrize("score", PLANES, ids=lambda score: score.__name__)
def test_scores_of_pictures_are_symmetric(score) -> None:
    first, second = noise(), disc(12, 16, 8)
    assert score(first, second) == pytest.approx(score(second, first), abs=1e-12)


@pytest.mark.parametrize("score", PLANES, ids=lambda score: score.__name__)
def test_bytes_and_shares_and_planes_say_the_same(score) -> None:
    first, second = (np.repeat(one[..., :1], 3, axis=-1) for one in (noise(), disc(12, 16, 8)))
    expected = score(first, second)
    assert score(first / 255, (second / 255).astype(np.float32)) == pytest.approx(expected)
    assert score(first[..., 0], second[..., 0]) == pytest.approx(expected)


@pytest.mark.parametrize("score", PLANES, ids=lambda score: score.__name__)
def test_scores_leave_the_pictures_as_they_are(score) -> None:
    first, second = noise(), disc(12, 16, 8)
    before = first.copy(), second.copy()
    score(first, second)
    assert np.array_equal(first, before[0])
    assert np.array_equal(second, before[1])


def test_edges_count_within_two_pixels() -> None:
    found = [edge_f1(line(10), line(10 + away)) for away in range(5)]
    assert found == [1, 1, 1, 0, 0]
    assert edge_f1(line(10), line(13), tolerance=3) == 1
    assert edge_f1(line(10), line(11), tolerance=0) == 0


def test_edge_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # All of the hint is found, and as much besides: precision 1/2, recall 1.
    assert edge_f1(line(5), line(5) | line(25)) == pytest.approx(2 / 3)


def test_empty_drawings_agree_with_each_other_alone() -> None:
    for score in (edge_f1, mask_iou):
        assert score(flat(0, 0, 0), flat(0, 0, 0)) == 1
        assert score(flat(0, 0, 0), line(5)) == 0
        assert score(line(5), flat(0, 0, 0)) == 0


def test_mask_iou_is_overlap_by_union() -> None:
    first, second = np.zeros((2, SIZE, SIZE), bool)
    first[:, :16], second[:, 8:24] = True, True
    assert mask_iou(first, second) == pytest.approx(1 / 3)
    assert mask_iou(first, ~first) == 0


def test_a_mask_is_on_above_the_middle() -> None:
    assert mask_iou(flat(127, 127, 127), flat(0, 0, 0)) == 1
    assert mask_iou(flat(128, 128, 128), flat(255, 255, 255)) == 1


def test_depth_is_compared_up_to_scale_and_shift() -> None:
    depth = np.random.default_rng(1).random((SIZE, SIZE))
    assert depth_correlation(depth, 0.3 * depth + 0.5) == pytest.approx(1)
    assert depth_correlation(depth, 1 - depth) == pytest.approx(-1)


def test_spearman_is_the_same_for_every_rising_curve() -> None:
    depth = np.random.default_rng(1).random((SIZE, SIZE))
    assert depth_correlation(depth, depth**5, "spearman") == pytest.approx(1)
    assert depth_correlation(depth, depth**5) < 0.9


def test_correlations_are_those_of_the_textbook() -> None:
    first = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    second = np.array([[0.2, 0.1, 0.4, 0.3, 0.3]])
    assert depth_correlation(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    # Ranks 2, 1, 5, 3.5, 3.5 against 1 to 5.
    ranks = np.corrcoef([1, 2, 3, 4, 5], [2, 1, 5, 3.5, 3.5])[0, 1]
    assert depth_correlation(first, second, "spearman") == pytest.approx(ranks)


def test_unrelated_depths_do_not_correlate() -> None:
    draws = np.random.default_rng(2).random((2, 64, 64))
    assert abs(depth_correlation(*draws)) < 0.05


def test_a_flat_depth_agrees_with_a_flat_one_alone() -> None:
    assert depth_correlation(flat(9, 9, 9), flat(200, 200, 200)) == 1
    assert depth_correlation(flat(9, 9, 9), noise()) == 0


def test_black_and_white_are_100_apart() -> None:
    assert colour_error(flat(0, 0, 0), flat(255, 255, 255)) == pytest.approx(100, abs=0.01)


def test_colours_are_as_far_apart_as_in_cielab() -> None:
    # sRGB red and green in CIELAB (D65): (53.24, 80.09, 67.20) and (87.73, -86.18, 83.18).
    expected = math.dist((53.24, 80.09, 67.20), (87.73, -86.18, 83.18))
    assert colour_error(flat(255, 0, 0), flat(0, 255, 0)) == pytest.approx(expected, abs=0.2)


def test_colour_error_is_a_mean_over_the_pixels() -> None:
    half = flat(0, 0, 0)
    half[:, : SIZE // 2] = 255
    assert colour_error(flat(0, 0, 0), half) == pytest.approx(50, abs=0.01)


def test_the_same_pose_is_at_no_distance() -> None:
    assert keypoint_distance(STANDING, STANDING) == 0
    assert keypoint_distance(np.stack([STANDING, BESIDE]), np.stack([BESIDE, STANDING])) == 0


def test_keypoint_distance_is_in_sizes_of_the_person() -> None:
    assert keypoint_distance(STANDING, moved(STANDING, 6, 8)) == pytest.approx(0.1)
    assert keypoint_distance(STANDING * 3, moved(STANDING, 2, 0) * 3) == pytest.approx(0.02)


def test_a_keypoint_that_was_not_found_counts_one() -> None:
    lacking = STANDING.copy()
    lacking[0, 2] = 0
    assert keypoint_distance(STANDING, lacking) == pytest.approx(1 / 5)
    lacking[0] = np.nan
    assert keypoint_distance(STANDING, lacking) == pytest.approx(1 / 5)


def test_keypoints_that_the_hint_lacks_do_not_count() -> None:
    lacking = STANDING.copy()
    lacking[0, 2] = 0
    assert keypoint_distance(lacking, STANDING) == 0


def test_no_distance_counts_more_than_one() -> None:
    assert keypoint_distance(STANDING, moved(STANDING, 1e5, 0)) == 1


def test_a_missing_and_a_spurious_person_count_one_for_each_keypoint() -> None:
    both = np.stack([STANDING, BESIDE])
    assert keypoint_distance(both, STANDING) == pytest.approx(0.5)
    assert keypoint_distance(STANDING, both) == pytest.approx(0.5)


def test_nobody_agrees_with_nobody_alone() -> None:
    nobody = np.zeros((0, 5, 3))
    assert keypoint_distance(nobody, nobody) == 0
    assert keypoint_distance(STANDING, nobody) == 1
    assert keypoint_distance(nobody, STANDING) == 1


def test_keypoints_without_confidence_are_seen() -> None:
    assert keypoint_distance(STANDING[:, :2], moved(STANDING, 10, 0)[:, :2]) == pytest.approx(0.1)


@pytest.mark.parametrize("score", PLANES, ids=lambda score: score.__name__)
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.zeros((16, SIZE, 3), np.uint8), "32x32 and that of the generated picture 32x16"),
        (np.zeros((SIZE, SIZE, 4), np.uint8), r"shape \(32, 32, 4\), expected"),
        (np.zeros((0, 0), np.uint8), "expected"),
        (np.zeros((SIZE, SIZE), np.int64), "int64, expected uint8"),
        (np.full((SIZE, SIZE), 7.0), "numbers from 7 to 7, expected"),
        (np.full((SIZE, SIZE), np.nan), "numbers from nan to nan"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(score, found, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        score(noise(), found)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(CldmError, match=r"tolerance is -1, expected pixels"):
        edge_f1(line(1), line(1), tolerance=-1)
    with pytest.raises(CldmError, match="method is 'kendall', expected one of pearson, spearman"):
        depth_correlation(noise(), noise(), method="kendall")


def test_keypoints_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="5 keypoints for each person and 4 were found"):
        keypoint_distance(STANDING, STANDING[:4])
    with pytest.raises(ShapeError, match=r"shape \(5, 4\), expected \(people, keypoints, 3\)"):
        keypoint_distance(np.ones((5, 4)), STANDING)


# A person of 380 pixels, as OpenPose numbers the joints.
JOINTS_AT = (
    *((256, 80), (256, 130), (205, 130), (180, 200), (170, 270), (307, 130), (335, 200)),
    *((345, 265), (225, 270), (220, 360), (215, 450), (287, 270), (292, 360), (298, 450)),
    *((245, 68), (267, 68), (230, 75), (282, 75)),
)


def person(left: float = 0, *, hand: bool = False, face: bool = False) -> Person:
    draws = np.random.default_rng(0)
    spread = [(325 + left + 40 * x, 280 + 30 * y) for x, y in draws.random((21, 2))]
    circle = [
        (256 + left + 30 * math.cos(angle), 80 + 35 * math.sin(angle))
        for angle in np.linspace(0, 6, 68)
    ]
    return Person(
        body=tuple(Keypoint(x + left, y) for x, y in JOINTS_AT),
        left_hand=tuple(Keypoint(x, y) for x, y in spread) if hand else (),
        face=tuple(Keypoint(x, y) for x, y in circle) if face else (),
    )


def drawn(*people: Person) -> np.ndarray:
    return draw(Frame(768, 512, people))


def where(left: float = 0) -> np.ndarray:
    return np.array([(x + left, y, 1.0) for x, y in JOINTS_AT])


def test_drawn_poses_are_read_back() -> None:
    found = keypoints_of(drawn(person(-80), person(250)))
    assert found.shape == (2, JOINTS, 3)
    found = found[np.argsort(found[:, 0, 0])]
    np.testing.assert_allclose(found, [where(-80), where(250)], atol=0.5)


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.375, 1.5])
def test_drawn_poses_are_read_at_other_sizes(scale: float) -> None:
    import cv2

    small = cv2.resize(drawn(person()), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (found,) = keypoints_of(small)
    assert keypoint_distance(where() * [scale, scale, 1], found) < 0.01


def test_drawn_poses_are_read_from_jpeg() -> None:
    import cv2

    _, data = cv2.imencode(".jpg", drawn(person()), [cv2.IMWRITE_JPEG_QUALITY, 85])
    (found,) = keypoints_of(cv2.imdecode(data, cv2.IMREAD_COLOR))
    assert keypoint_distance(where(), found) < 0.01


def test_hands_and_faces_are_not_taken_for_bodies() -> None:
    found = keypoints_of(drawn(person(hand=True, face=True)))
    # A hand covers the wrist, and a face may cover eyes and ears.
    assert keypoint_distance(where(), found) < 0.1
    assert len(found) == 1


def test_a_drawing_of_nobody_has_no_keypoints() -> None:
    assert keypoints_of(flat(0, 0, 0)).shape == (0, JOINTS, 3)


def test_the_registered_score_reads_drawn_poses() -> None:
    score = SCORES["keypoint_distance"]
    first, near, far = (drawn(person(left)) for left in (0, 20, 200))
    assert score(first, first) == 0
    assert score(first, near) == pytest.approx(20 / 382, abs=0.002)
    assert score(first, far) > 0.5
    assert score(first, np.zeros_like(first)) == 1


def test_scores_are_registered_under_their_functions_names() -> None:
    assert list(SCORES) == [score.function.__name__ for score in SCORES.values()]
    assert all(
        list(inspect.signature(score.function).parameters)[:2] == ["hint", "found"]
        for score in SCORES.values()
    )


def test_scores_name_annotators_that_exist() -> None:
    named = [hint for score in SCORES.values() for hint in score.hints]
    assert len(named) == len(set(named))
    assert set(named) <= set(ANNOTATORS)


def test_every_annotator_whose_hints_say_what_to_look_for_has_a_score() -> None:
    named = {hint for score in SCORES.values() for hint in score.hints}
    assert set(ANNOTATORS) - named == {"inpaint", "animal_pose"}


def test_scores_are_found_by_name_and_by_annotator() -> None:
    assert score_named("mask_iou").function is mask_iou
    assert score_for("annotators:canny").name == "edge_f1"
    assert score_for("openpose").name == "keypoint_distance"


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(CldmError, match="no score 'psnr': choose one of edge_f1, depth_corr"):
        score_named("psnr")
    with pytest.raises(CldmError, match="No score is known for hints of 'mine:sketch'"):
        score_for("mine:sketch")


def test_numbers_are_said_with_their_unit() -> None:
    assert SCORES["edge_f1"].said(0.7051) == "0.71"
    assert SCORES["colour_error"].said(12.345) == "12.3 dE"
    assert SCORES["edge_f1"].said(math.nan) == "NaN"
