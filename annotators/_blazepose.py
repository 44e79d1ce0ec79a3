"""BlazePose, MediaPipe hands and face mesh (Bazarevsky et al., 2020; Zhang et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ._openpose import PARTS
from .base import RGB8, Annotator
from .keypoints import BODY, Frame, Keypoint, Part, Person
from .pose_blaze import (
    Area,
    Floats,
    anchors,
    body_area,
    corrected,
    detections,
    face_area,
    hand_area,
    whole,
)
from .skeleton import draw
from .tflite import Net, Nets, networks, of_wheel

BODY_FINDER = of_wheel(
    "pose_detection",
    "pose_detection",
    2959046,
    "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
)
BODY_POINTS = of_wheel(
    "pose_landmark",
    "pose_landmark_full",
    6440512,
    "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)
HAND_FINDER = of_wheel(
    "palm_detection",
    "palm_detection_full",
    2339846,
    "1b14e9422c6ad006cde6581a46c8b90dd573c07ab7f3934b5589e7cea3f89a54",
)
HAND_POINTS = of_wheel(
    "hand_landmark",
    "hand_landmark_full",
    5478917,
    "11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
)
FACE_FINDER = of_wheel(
    "face_detection",
    "face_detection_short_range",
    229714,
    "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
)
FACE_POINTS = of_wheel(
    "face_landmark",
    "face_landmark",
    1242398,
    "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
)
WEIGHTS = (BODY_FINDER, BODY_POINTS, HAND_FINDER, HAND_POINTS, FACE_FINDER, FACE_POINTS)

LEAST_SCORE = 0.5

# OpenPose's body from BlazePose's 33 points; the neck is put in between the shoulders.
_SHOULDERS = [11, 12]
_NECK = 33
_OPENPOSE = (0, _NECK, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
_RIGHT_WRIST, _LEFT_WRIST = 4, 7
# OpenPose's face (the 68 points of iBUG 300-W) from the 468 of the mesh.
_JAW = (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389)
_BROWS = (71, 63, 105, 66, 107, 336, 296, 334, 293, 301)
_NOSE = (168, 197, 5, 4, 75, 97, 2, 326, 305)
_EYES = (33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
_MOUTH = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87)
_FACE = (*_JAW, *_BROWS, *_NOSE, *_EYES, *_MOUTH)
_NOSE_TIP = 30


def blazepose(
    image: RGB8, *, body: bool, hands: bool, face: bool, xinsir: bool, device: Any
) -> RGB8:
    """The skeletons of everyone in (H, W, 3), on black."""
    (frame,) = detect(image[None], hands=hands, face=face, device=device)
    return draw(frame, body=body, hands=hands, face=face, xinsir=xinsir)


def detect(
    images: RGB8, *, hands: bool = True, face: bool = True, device: Any = None
) -> list[Frame]:
    """Who is in each picture of (N, H, W, 3); always on the CPU."""
    with networks(WEIGHTS, device) as nets:
        return [_frame(image, nets, hands=hands, face=face) for image in images]


def _frame(image: RGB8, nets: Nets, *, hands: bool, face: bool) -> Frame:
    people = [Person(body=one) for one in _bodies(image, nets) if one]
    if hands:
        for part, area, is_left in find_hands(image, nets):
            people = with_hand(people, part, area, is_left)
    if face:
        for part, area in _faces(image, nets):
            owner = _nearest(people, (0,), part[_NOSE_TIP], area, lambda person, _: person.face)
            people = _given(people, owner and owner[0], face=part)
    return Frame(image.shape[1], image.shape[0], tuple(people))


def _found(
    image: RGB8,
    net: Net,
    area_of: Callable[[Floats], Area],
    side: int,
    strides: Sequence[int],
    *,
    signed: bool = False,
    least: float = LEAST_SCORE,
) -> list[Area]:
    """The squares that a detector finds in the picture, the surest first.

    signed: its inputs go from -1 to 1. least: how sure it has to be, from 0 to 1.
    """
    square = whole(image)
    pixels = square.out_of(image, side, edge=False) / np.float32(255)
    values, logits = net(pixels * 2 - 1 if signed else pixels)
    found = detections(values, logits[:, 0], anchors(side, strides), side, least)
    areas = []
    for points in found:
        places = square.in_picture(points)
        places[1] = points[1] * square.side
        areas.append(area_of(places))
    return areas


def _bodies(image: RGB8, nets: Nets) -> list[Part]:
    areas = _found(image, nets[BODY_FINDER], body_area, 224, (8, 16, 32, 32, 32), signed=True)
    return [_body(image, area, nets[BODY_POINTS]) for area in areas]


def _body(image: RGB8, area: Area, net: Net) -> Part:
    """The 18 points; () where the network sees nobody."""
    values, score, _, maps, _ = net(area.out_of(image, 256, edge=True) / np.float32(255))
    if score[0] < LEAST_SCORE:
        return ()
    points = values.reshape(-1, 5)
    sure = 1 / (1 + np.exp(-points[:33, 3:].min(axis=-1)))
    places = area.in_picture(corrected(points[:, :2] / 256, maps)[:33])
    places = np.vstack([places, places[_SHOULDERS].mean(axis=0)])
    sure = np.append(sure, sure[_SHOULDERS].min())
    return tuple(
        Keypoint(float(places[index, 0]), float(places[index, 1]), float(sure[index]))
        if sure[index] >= LEAST_SCORE
        else None
        for index in _OPENPOSE
    )


def find_hands(image: RGB8, nets: Nets) -> list[tuple[Part, Area, bool]]:
    """The points of each hand, its square, and whether it looks like a left one."""
    found = []
    for area in _found(image, nets[HAND_FINDER], hand_area, 192, (8, 16, 16, 16)):
        pixels = area.out_of(image, 224, edge=True) / np.float32(255)
        values, score, side, _ = nets[HAND_POINTS](pixels)
        if score[0] >= LEAST_SCORE:
            places = area.in_picture(values.reshape(-1, 3)[:, :2] / 224)
            # The network says how sure a left hand is in a mirrored picture: a right one here.
            found.append((_part(places, float(score[0])), area, bool(side[0] < 0.5)))
    return found


def _faces(image: RGB8, nets: Nets) -> list[tuple[Part, Area]]:
    found = []
    for mesh, score, area in meshes(image, nets[FACE_FINDER], nets[FACE_POINTS]):
        eyes = mesh[[*_EYES]].reshape(2, 6, 2).mean(axis=1)
        found.append((_part(np.vstack([mesh[[*_FACE]], eyes]), score), area))
    return found


def meshes(
    image: RGB8, finder: Net, net: Net, *, most: int | None = None, least: float = LEAST_SCORE
) -> Iterator[tuple[Floats, float, Area]]:
    """Of each face its mesh (468 or more, 2) in pixels, how sure that is, and its square.

    most: how many of the surest faces are looked at; least: how sure the finder has to be.
    """
    areas = _found(image, finder, face_area, 128, (8, 16, 16, 16), signed=True, least=least)
    for area in areas[:most]:
        pixels = area.out_of(image, 192, edge=True) / np.float32(255)
        values, logit = (output.ravel() for output in net(pixels))
        score = 1 / (1 + np.exp(-float(logit[0])))
        if score >= LEAST_SCORE:
            yield area.in_picture(values.reshape(-1, 3)[:, :2] / 192), score, area


def _part(places: Floats, score: float) -> Part:
    return tuple(Keypoint(float(x), float(y), min(score, 1.0)) for x, y in places)


def with_hand(people: list[Person], part: Part, area: Area, is_left: bool) -> list[Person]:
    """The people with one more hand: of whom has a wrist there, or of someone else."""

    def has(person: Person, wrist: int) -> Part:
        return person.left_hand if wrist == _LEFT_WRIST else person.right_hand

    owner = _nearest(people, (_RIGHT_WRIST, _LEFT_WRIST), part[0], area, has)
    if owner is not None:
        is_left = owner[1] == _LEFT_WRIST
    name = "left_hand" if is_left else "right_hand"
    return _given(people, owner and owner[0], **{name: part})


def _nearest(
    people: Sequence[Person],
    points: Sequence[int],
    place: Keypoint | None,
    area: Area,
    has: Callable[[Person, int], Part],
) -> tuple[int, int] | None:
    """Who has one of these points nearest to a place, within half of the area, and lacks the part.

    Gives the person's number and the point.
    """
    found = []
    for number, person in enumerate(people):
        for index in points:
            point = person.body[index] if person.body else None
            if point is not None and place is not None and not has(person, index):
                away = ((point.x - place.x) ** 2 + (point.y - place.y) ** 2) ** 0.5
                found.append((away, number, index))
    away, number, index = min(found, default=(area.side, 0, 0))
    return (number, index) if away < area.side / 2 else None


def _given(people: list[Person], number: int | None, **parts: Part) -> list[Person]:
    """The people, one of whom has more parts: a new one where there is no number."""
    if number is None:
        return [*people, replace(Person(body=(None,) * BODY), **parts)]
    return [
        replace(person, **parts) if one == number else person for one, person in enumerate(people)
    ]


ANNOTATOR = Annotator(
    name="blazepose",
    title="BlazePose (MediaPipe)",
    description="Coloured skeletons of everyone, with hands and faces, on black, for a ControlNet "
    "trained on OpenPose. Quick on a CPU. Needs the package ai-edge-litert.",
    run=blazepose,
    params=PARTS,
    resolution=512,
    weights=WEIGHTS,
)
