"""Strength over the pictures of a batch."""

import pytest

from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.frames import FrameCurve, FrameKeyframe
from controlnet_pack.cldm_core.schedule import EASINGS


@pytest.mark.parametrize(
    ("text", "count", "values"),
    [
        ("0: 1", 3, [1, 1, 1]),
        ("2: 0.3", 4, [0.3, 0.3, 0.3, 0.3]),
        ("0: 1, 4: 0", 5, [1, 0.75, 0.5, 0.25, 0]),
        ("0: 1, -1: 0", 3, [1, 0.5, 0]),
        ("0: 1, -1: 0", 5, [1, 0.75, 0.5, 0.25, 0]),
        ("-3: 1 hold, -1: 0", 5, [1, 1, 1, 1, 0]),
        ("0-2: 1, 4: 0", 6, [1, 1, 1, 0.5, 0, 0]),
        ("0 - 1 : 1 hold; 3--1: .5", 6, [1, 1, 1, 0.5, 0.5, 0.5]),
        ("-4--3: 1\n-1: 0,", 4, [1, 1, 0.5, 0]),
        ("0: 0 cosine, 2: 1 ease_in, 4: 0", 5, [0, 0.5, 1, 0.75, 0]),
        ("0: 1, 8: 0", 3, [1, 0.875, 0.75]),
        ("1, 0.9, 0.8", 5, [1, 0.9, 0.8, 0.8, 0.8]),
        ("1, 0.9, 0.8", 2, [1, 0.9]),
        ("0.5", 2, [0.5, 0.5]),
    ],
)
def test_a_curve_from_text(text: str, count: int, values: list[float]) -> None:
    assert FrameCurve.parse(text).factors(count) == pytest.approx(values)


def test_a_list_is_taken_picture_by_picture() -> None:
    curve = FrameCurve.of([1, 0.5, 0.25])
    assert curve == FrameCurve.parse("0: 1, 1: 0.5, 2: 0.25")
    assert curve.factors(4) == (1, 0.5, 0.25, 0.25)


@pytest.mark.parametrize("easing", EASINGS)
def test_every_way_starts_at_its_keyframe_and_ends_at_the_next(easing: str) -> None:
    factors = FrameCurve((FrameKeyframe(1, 3, 3, easing), FrameKeyframe(8, 8, 1))).factors(10)
    assert factors[:4] == (3, 3, 3, 3)
    assert factors[8:] == (1, 1)
    assert all(1 <= factor <= 3 for factor in factors)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "A curve over the pictures needs at least one keyframe"),
        ("half: 1", "'half: 1' is no keyframe: write picture: strength, such as 8: 0.5"),
        ("0.5: 1", "'0.5: 1' is no keyframe"),
        ("1, 2: 1", "'1' is no keyframe"),
        ("1, 1, two", "'two' is no keyframe"),
        ("0: nan", "'0: nan' is no keyframe"),
        ("9999999999: 1", "'9999999999: 1' is no keyframe"),
        ("8: 1, 2: 0", "A keyframe at picture 2 stands behind one at 8: put them in order"),
        ("0-4: 1, 4: 0", "A keyframe at picture 4 stands behind one at 4"),
        ("-1: 1, -2: 0", "A keyframe at picture -2 stands behind one at -1"),
        ("7-3: 1", "holds from picture 7 to 3: put the first of them first"),
        ("0: 1 wobble, 1: 0", "goes on by 'wobble', expected one of linear, hold"),
        ("0: 1e999", "A keyframe's strength is inf, expected a finite number"),
        ("1e999, 1", "A keyframe's strength is inf, expected a finite number"),
    ],
)
def test_a_curve_that_makes_no_sense_is_told(text: str, sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        FrameCurve.parse(text)


@pytest.mark.parametrize(
    ("text", "count", "places"),
    [("8: 1, -1: 0", 4, "8, 3"), ("0: 1, -1: 0", 1, "0, 0"), ("6--1: 1", 4, "6 to 3")],
)
def test_a_batch_too_short_for_its_keyframes_is_told(text: str, count: int, places: str) -> None:
    curve = FrameCurve.parse(text)
    with pytest.raises(CldmError, match=f"batch of {count} .* at the pictures {places}: make it"):
        curve.factors(count)


def test_a_batch_has_a_picture() -> None:
    with pytest.raises(CldmError, match="A batch of 0 pictures was asked for"):
        FrameCurve.parse("0: 1").factors(0)
