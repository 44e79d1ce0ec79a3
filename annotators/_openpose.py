"""OpenPose: body, hands and face of everyone (Cao et al., 2017; Simon et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Flag, Weights
from .keeper import fill, network, outputs
from .keypoints import BODY as BODY_POINTS
from .keypoints import HAND as HAND_POINTS
from .keypoints import Frame, Keypoint, Part, Person
from .pictures import each
from .pose_boxes import Box, face_box, hand_boxes
from .pose_groups import people
from .pose_maps import STRIDE, Points, enlarged, face_points, fitted, hand_point, peaks
from .skeleton import draw_all

if TYPE_CHECKING:
    from torch import Tensor, nn

REPOSITORY = "lllyasviel/Annotators"
REVISION = "982e7edaec38759d914a963c48c4726685de7d96"
LICENCE = "CMU OpenPose: academic or non-profit, non-commercial research only"

BODY = Weights(
    repository=REPOSITORY,
    file="body_pose_model.pth",
    revision=REVISION,
    bytes=209267595,
    sha256="25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
    licence=LICENCE,
    commercial=False,
)
HAND = Weights(
    repository=REPOSITORY,
    file="hand_pose_model.pth",
    revision=REVISION,
    bytes=147341049,
    sha256="b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600",
    licence=LICENCE,
    commercial=False,
)
FACE = Weights(
    repository=REPOSITORY,
    file="facenet.pth",
    revision=REVISION,
    bytes=153718792,
    sha256="8beb52e548624ffcc4aed12af7aee7dcbfaeea420c75609fee999fe7add79d43",
    licence=LICENCE,
    commercial=False,
)

BOX = 368
"""The height of the pictures that the networks were trained on."""
BODY_SCALE = 0.5
LONGEST = 4096
"""No picture is made wider than this: a strip would fill the memory."""
PIXELS_AT_ONCE = 16 * 184 * 256
"""Of the small pictures that go through the body's network together."""
HAND_SCALES = (0.5, 1.0, 1.5, 2.0)
HAND_MAP = 128
HAND_BLUR = 0.8
FACE_SIDE = 384
PARTS_AT_ONCE = 4
"""How many hands or faces go through a network together; one hand of 736 x 736 takes 0.4 GB."""


def openpose(
    images: RGB8, *, body: bool, hands: bool, face: bool, xinsir: bool, device: Any
) -> RGB8:
    """The skeletons of everyone in (N, H, W, 3), on black."""
    frames = detect(images, hands=hands, face=face, device=device)
    return draw_all(frames, body=body, hands=hands, face=face, xinsir=xinsir)


def detect(images: RGB8, *, hands: bool, face: bool, device: Any = None) -> list[Frame]:
    """Who is in each picture of (N, H, W, 3); bodies are always looked for."""
    height, width = images.shape[1:3]
    bodies = points_of_bodies(images, device)
    everyone = [(picture, body) for picture, found in enumerate(bodies) for body in found]
    boxes = [hand_boxes(body, height, width) for _, body in everyone if hands]
    sides = [
        _parts(points_of_hands, images, everyone, [pair[side] for pair in boxes], device)
        for side in (0, 1)
    ]
    faces = [face_box(body, height, width) for _, body in everyone if face]
    seen = _parts(points_of_faces, images, everyone, faces, device)
    people_of: list[list[Person]] = [[] for _ in images]
    for number, (picture, body) in enumerate(everyone):
        left, right, mask = (part.get(number, ()) for part in (*sides, seen))
        people_of[picture].append(Person(_rounded(body, height, width), left, right, mask))
    return [Frame(width, height, tuple(found)) for found in people_of]


def _rounded(body: Part, height: int, width: int) -> Part:
    """The points as fractions of the picture and back: the reference draws from those.

    x / width * width can be a hair below x, which is then drawn one pixel to the left.
    """
    return tuple(
        point and Keypoint(point.x / width * width, point.y / height * height, point.confidence)
        for point in body
    )


def points_of_bodies(images: RGB8, device: Any) -> list[list[Part]]:
    """Everyone's 18 points in each picture of (N, H, W, 3)."""
    height, width = images.shape[1:3]
    scale = min(BODY_SCALE * BOX / height, LONGEST / width)
    small = np.stack([fitted(one, height * scale, width * scale) for one in _bgr(images)])
    worked = small.shape[1:3]

    def enlarge(one: NDArray[Any]) -> NDArray[Any]:
        return enlarged(one, worked, (height, width))

    found = []
    at_once = max(1, PIXELS_AT_ONCE // (worked[0] * worked[1]))
    with network(BODY, body_net, device) as net:
        for start in range(0, len(small), at_once):
            # So small that a batch is twice as fast on a processor too: the weights are read once.
            maps = net(_padded(_normal(small[start : start + at_once], net)))
            for of_limbs, of_points in zip(*(one.cpu().numpy() for one in maps), strict=True):
                at = each(lambda heat: peaks(enlarge(heat)), of_points[:BODY_POINTS])
                rows = people(at, of_limbs, height, enlarge)
                found.append(_as_parts(np.concatenate(at), rows))
    return found


def _as_parts(points: Points, rows: NDArray[np.float64]) -> list[Part]:
    """Rows (P, 18) of indices into all points, -1 for none, as the people's parts."""

    def point(index: int) -> Keypoint | None:
        return None if index < 0 else _keypoint(*points[index])

    return [tuple(point(int(index)) for index in row) for row in rows]


def _keypoint(x: float, y: float, score: float) -> Keypoint:
    return Keypoint(float(x), float(y), float(min(max(score, 1e-6), 1.0)))


def _parts(
    read: Callable[[Sequence[RGB8], Any], list[Points]],
    images: RGB8,
    everyone: Sequence[tuple[int, Part]],
    boxes: Sequence[Box | None],
    device: Any,
) -> dict[int, Part]:
    """The hand or the face of everyone who has a box, by the person's number."""
    jobs = [(number, box) for number, box in enumerate(boxes) if box is not None]
    height, width = images.shape[1:3]
    found: dict[int, Part] = {}
    for start in range(0, len(jobs), PARTS_AT_ONCE):
        some = jobs[start : start + PARTS_AT_ONCE]
        crops = []
        for number, (left, top, side) in some:
            picture = images[everyone[number][0]]
            crops.append(_bgr(picture[top : top + side, left : left + side]))
        for (number, box), points in zip(some, read(crops, device), strict=True):
            found[number] = _placed(points, box, height, width)
    return found


def _placed(points: Points, box: Box, height: int, width: int) -> Part:
    """Points of a crop in the picture; as in the reference, row and column 0 mean "not seen".

    In float32 and through fractions of the picture, as there: it decides about a pixel at times.
    """
    size = np.array([width, height], np.float32)
    inside = points[:, :2].astype(np.float32)
    seen = (inside[:, 0] >= 1e-6) & (inside[:, 1] >= 1e-6)
    places = (inside + np.array(box[:2], np.float32)) / size * size
    return tuple(
        _keypoint(x, y, score) if is_seen else None
        for (x, y), score, is_seen in zip(places, points[:, 2], seen, strict=True)
    )


def points_of_hands(crops: Sequence[RGB8], device: Any) -> list[Points]:
    """The 21 points (21, 3) of each hand, in pixels of its BGR crop."""
    import cv2

    smooth = [np.asarray(cv2.GaussianBlur(crop, (0, 0), HAND_BLUR), np.uint8) for crop in crops]
    total = np.zeros((len(crops), HAND_POINTS, HAND_MAP, HAND_MAP))
    with network(HAND, hand_net, device) as net:
        for scale in HAND_SCALES:
            side = scale * BOX
            frames = _normal(np.stack([fitted(one, side, side) for one in smooth]), net)
            maps = outputs(net, frames)
            for hand, found in zip(total, maps.cpu().numpy(), strict=True):
                for part in range(HAND_POINTS):
                    large = enlarged(found[part], (int(side),) * 2, (HAND_MAP,) * 2)
                    hand[part] += large / len(HAND_SCALES)
    read = [np.stack([hand_point(heat) for heat in hand]) for hand in total]
    return [_to_pixels(points, crop) for points, crop in zip(read, crops, strict=True)]


def _to_pixels(points: Points, crop: RGB8) -> Points:
    """From the maps' HAND_MAP pixels to whole pixels of the crop."""
    height, width = crop.shape[:2]
    places = np.floor(points[:, :2] * (width, height) / HAND_MAP)
    return np.concatenate([places, points[:, 2:]], axis=1)


def points_of_faces(crops: Sequence[RGB8], device: Any) -> list[Points]:
    """The 70 points (70, 3) of each face, in pixels of its BGR crop.

    The reference takes the map of the background for a 71st point: a stray dot, left out here.
    """
    import torch.nn.functional as F

    small = np.stack([fitted(crop, FACE_SIDE, FACE_SIDE) for crop in crops])
    found = []
    with network(FACE, face_net, device) as net:
        for maps, crop in zip(outputs(net, _normal(small, net)), crops, strict=True):
            large = F.interpolate(
                maps[None, :-1], crop.shape[:2], mode="bilinear", align_corners=True
            )
            found.append(face_points(large[0].float().cpu().numpy()))
    return found


def _bgr(images: RGB8) -> RGB8:
    return np.ascontiguousarray(images[..., ::-1])


def _normal(images: RGB8, net: nn.Module) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) in [-0.5, 0.5] for the net."""
    from .nets.frames import as_tensor

    return as_tensor(images, net) / 256 - 0.5


def _padded(x: Tensor) -> Tensor:
    """Right and below to multiples of the stride, with the grey that is 0 here."""
    import torch.nn.functional as F

    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))


def body_net(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of body_pose_model.pth."""
    import torch

    from .nets.openpose import BodyNet

    with torch.device("meta"):
        net = BodyNet()
    return fill(net, tensors)


def hand_net(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of hand_pose_model.pth."""
    import torch

    from .nets.openpose import HAND_MAPS, PartNet

    with torch.device("meta"):
        net = PartNet(HAND_MAPS)
    return fill(net, tensors)


def face_net(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of facenet.pth."""
    import torch

    from .nets.openpose import FACE_MAPS, PartNet

    with torch.device("meta"):
        net = PartNet(FACE_MAPS)
    return fill(net, tensors)


PARTS = {
    "body": Flag(True, "draw the bodies", also=("detect_body", "include_body")),
    "hands": Flag(True, "look for hands and draw them", also=("detect_hand", "include_hand")),
    "face": Flag(True, "look for faces and draw them", also=("detect_face", "include_face")),
    "xinsir": Flag(
        False,
        "thicker sticks, as the openpose ControlNets of xinsir expect them",
        also=("scale_stick_for_xinsr_cn", "xinsr_stick_scaling"),
    ),
}
"""The settings of every annotator of poses."""

ANNOTATOR = Annotator(
    name="openpose",
    title="OpenPose",
    description="Coloured skeletons of everyone, with hands and faces, on black, for a ControlNet "
    "trained on OpenPose.",
    run=openpose,
    params=PARTS,
    resolution=512,
    batched=True,
    batched_on_cpu=True,
    weights=(BODY, HAND, FACE),
)
