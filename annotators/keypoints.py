"""Poses as data: people with the keypoints of body, hands and face, read from OpenPose JSON.

The form that CMU OpenPose writes and that the nodes of Fannovel16/comfyui_controlnet_aux and the
openpose editor of sd-webui exchange: people[].pose_keypoints_2d, hand_left_keypoints_2d,
hand_right_keypoints_2d and face_keypoints_2d, each x, y, confidence in turn, with canvas_width
and canvas_height.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeAlias

from .errors import AnnotatorError

BODY = 18
HAND = 21
ANIMAL = 17
"""How many points a part has. A face has 68, and 70 with the pupils."""

SMALL = 16
BEYOND = 2
"""Fractions of a canvas may be so large, since points may lie outside of it; on a canvas of SMALL
pixels or less they could be pixels and only go to 1."""

FARTHEST = 1e6
"""A point further out than this, in pixels, is a slip."""

# COCO's 17 points and BODY_25's as OpenPose's 18; -1 is the neck, which COCO lacks.
_FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_FROM_BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)


@dataclass(frozen=True)
class Keypoint:
    """A point in pixels of its frame, x to the right and y down; confidence in (0, 1]."""

    x: float
    y: float
    confidence: float = 1.0


Part: TypeAlias = tuple[Keypoint | None, ...]
"""The points of a part in OpenPose's order, None where one isn't seen; () where nothing is."""


@dataclass(frozen=True)
class Person:
    """body: 18 points (COCO with a neck); hands: 21 each; face: any number, usually 68 or 70."""

    body: Part = ()
    left_hand: Part = ()
    right_hand: Part = ()
    face: Part = ()

    @property
    def parts(self) -> tuple[Part, Part, Part, Part]:
        """Body, left hand, right hand and face."""
        return self.body, self.left_hand, self.right_hand, self.face


@dataclass(frozen=True)
class Frame:
    """The people and animals in one picture of `width` x `height` pixels.

    An animal has 17 points in the order of AP-10K.
    """

    width: int
    height: int
    people: tuple[Person, ...] = ()
    animals: tuple[Part, ...] = ()

    def only(self, *, body: bool = True, hands: bool = True, face: bool = True) -> Frame:
        """The frame with these parts alone; who has none of them is still counted."""
        people = (
            Person(
                body=person.body if body else (),
                left_hand=person.left_hand if hands else (),
                right_hand=person.right_hand if hands else (),
                face=person.face if face else (),
            )
            for person in self.people
        )
        return replace(self, people=tuple(people))

    def resized(self, width: int, height: int) -> Frame:
        """The frame stretched to another size."""
        if (width, height) == (self.width, self.height):
            return self
        by = width / self.width, height / self.height
        people = tuple(Person(*(_scaled(part, *by) for part in one.parts)) for one in self.people)
        return Frame(width, height, people, tuple(_scaled(one, *by) for one in self.animals))


_NAMES = (
    "pose_keypoints_2d",
    "hand_left_keypoints_2d",
    "hand_right_keypoints_2d",
    "face_keypoints_2d",
)


def to_json(frame: Frame, *, confidence: bool = False) -> dict[str, Any]:
    """The frame as OpenPose JSON in pixels, a dictionary for `json.dump`.

    A point that isn't seen is 0, 0, 0, and a part without points None. Every other point has the
    confidence 1, since the nodes of comfyui_controlnet_aux and sd-webui take anything less as
    not seen; `confidence` writes what is known instead.
    """

    def numbers(part: Part) -> list[float] | None:
        found = [
            (0.0, 0.0, 0.0)
            if point is None
            else (point.x, point.y, point.confidence if confidence else 1.0)
            for point in part
        ]
        return [number for triple in found for number in triple] or None

    people = [dict(zip(_NAMES, map(numbers, one.parts), strict=True)) for one in frame.people]
    canvas = {"canvas_width": frame.width, "canvas_height": frame.height}
    if not frame.animals:
        return {"people": people, **canvas}
    found = [numbers(animal) or [] for animal in frame.animals]
    animals = [[one[start : start + 3] for start in range(0, len(one), 3)] for one in found]
    return {"version": "ap10k", "people": people, "animals": animals, **canvas}


def from_json(content: Any, *, size: tuple[int, int] | None = None) -> Frame:
    """The frame that a dictionary in OpenPose's form describes.

    Points are in pixels, or in fractions of the canvas where none is beyond 2 (1 on a canvas of up
    to 16 pixels). A point with the confidence 0 isn't seen. Bodies of 17 (COCO) or 25 (BODY_25)
    points become 18; of others the first 18 count. `size` is the canvas's width and height where
    the file doesn't say them. Raises AnnotatorError.
    """
    if not isinstance(content, Mapping):
        raise AnnotatorError(
            f"A pose has to be a JSON object with people in it, but it is {_kind(content)}."
        )
    width, height = _canvas(content, size)
    people = content.get("people", [])
    if not _is_list(people):
        raise AnnotatorError(f"The pose's people have to be a list, but are {_kind(people)}.")
    read = Frame(
        width,
        height,
        tuple(_person(person, number) for number, person in enumerate(people, start=1)),
        _animals(content.get("animals")),
    )
    if _in_fractions(read):
        read = replace(read, width=1, height=1).resized(width, height)
    return read


def frames_from_json(content: Any, *, size: tuple[int, int] | None = None) -> list[Frame]:
    """All frames of a text, of a list of dictionaries, or of one dictionary; see `from_json`."""
    if isinstance(content, str):
        if not content.strip():
            raise AnnotatorError("There is no pose: connect poses, or give OpenPose JSON as text.")
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise AnnotatorError(
                f"The pose isn't JSON: {error.msg} in line {error.lineno}, column {error.colno}."
            ) from error
    frames = content if _is_list(content) else [content]
    if not frames:
        raise AnnotatorError("The list of poses is empty: it has to have one for each picture.")
    return [from_json(frame, size=size) for frame in frames]


def _canvas(content: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    given: tuple[Any, Any] = content.get("canvas_width"), content.get("canvas_height")
    if given == (None, None) and size is not None:
        given = size
    found: list[Any] = [
        number for number in given if _is_number(number) and 1 <= number <= FARTHEST
    ]
    if len(found) != 2:
        raise AnnotatorError(
            f"The pose's canvas_width and canvas_height are {given[0]!r} and {given[1]!r}, "
            "expected the size in pixels of the picture that the points belong to."
        )
    return int(given[0]), int(given[1])


def _person(content: Any, number: int) -> Person:
    if not isinstance(content, Mapping):
        raise AnnotatorError(
            f"Person {number} of the pose has to be a JSON object, but is {_kind(content)}."
        )
    body, left, right, face = (
        _points(content.get(name), f"{name} of person {number}") for name in _NAMES
    )
    for name, hand in (("left", left), ("right", right)):
        if hand and len(hand) != HAND:
            raise AnnotatorError(
                f"The {name} hand of person {number} has {len(hand)} points, expected {HAND}."
            )
    return Person(_as_18(body, number), left, right, face)


def _animals(content: Any) -> tuple[Part, ...]:
    if content is None:
        return ()
    if not _is_list(content):
        raise AnnotatorError(f"The pose's animals have to be a list, but are {_kind(content)}.")
    found = tuple(_points(one, f"animal {count}") for count, one in enumerate(content, start=1))
    for number, points in enumerate(found, start=1):
        if len(points) != ANIMAL:
            raise AnnotatorError(
                f"animal {number} has {len(points)} points, expected {ANIMAL} (AP-10K)."
            )
    return found


def _points(numbers: Any, where: str) -> Part:
    """x, y and confidence in turn, flat or in threes, as points."""
    if numbers is None:
        return ()
    if hasattr(numbers, "tolist"):
        numbers = numbers.tolist()
    if not _is_list(numbers):
        raise AnnotatorError(f"{where} has to be a list of numbers, but is {_kind(numbers)}.")
    flat = [*_flat(numbers)]
    if len(flat) % 3:
        raise AnnotatorError(
            f"{where} has {len(flat)} numbers, expected x, y and confidence for each point."
        )
    if not all(_is_number(value) and abs(value) <= FARTHEST for value in flat):
        wrong = next(v for v in flat if not _is_number(v) or abs(v) > FARTHEST)
        raise AnnotatorError(f"{where} holds {wrong!r}, which can't be a position in pixels.")
    return tuple(
        Keypoint(float(x), float(y), float(sure)) if sure > 0 else None
        for x, y, sure in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    )


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if _is_list(value) else (value,)


def _as_18(points: Part, number: int) -> Part:
    if not points:
        return points
    if len(points) == 25:
        return tuple(points[index] for index in _FROM_BODY_25)
    if len(points) == 17:
        with_neck = (*points, _between(points[5], points[6]))
        return tuple(with_neck[index] for index in _FROM_COCO)
    if len(points) >= BODY:
        return points[:BODY]
    raise AnnotatorError(
        f"The body of person {number} has {len(points)} points, expected {BODY} (OpenPose's "
        "COCO, others may follow), 17 (COCO) or 25 (BODY_25)."
    )


def _between(one: Keypoint | None, other: Keypoint | None) -> Keypoint | None:
    if one is None or other is None:
        return None
    sure = min(one.confidence, other.confidence)
    return Keypoint((one.x + other.x) / 2, (one.y + other.y) / 2, sure)


def _in_fractions(frame: Frame) -> bool:
    parts = [part for person in frame.people for part in person.parts]
    points = [point for part in (*parts, *frame.animals) for point in part if point]
    most = BEYOND if min(frame.width, frame.height) > SMALL else 1
    return all(abs(point.x) <= most and abs(point.y) <= most for point in points)


def _scaled(part: Part, by_x: float, by_y: float) -> Part:
    return tuple(
        point and Keypoint(point.x * by_x, point.y * by_y, point.confidence) for point in part
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")
