"""OpenPose held against controlnet_aux (data/README.md), and the way from pictures to frames."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators import _openpose as openpose
from controlnet_pack.annotators.keypoints import Keypoint
from controlnet_pack.annotators.nets.openpose import BodyNet, PartNet
from controlnet_pack.annotators.pose import poses_in
from controlnet_pack.annotators.pose_boxes import face_box, hand_boxes
from controlnet_pack.annotators.pose_maps import peaks

from .pose_scenes import body_maps, part_maps, picture, seeded_weights

GOLDEN = json.loads((Path(__file__).parent / "data" / "poses.json").read_text())


class Gives(torch.nn.Module):
    """A network that gives what a function makes of its input."""

    def __init__(self, give):
        super().__init__()
        self.like = torch.nn.Parameter(torch.zeros(1))
        self.give = give

    def forward(self, x):
        return self.give(x)


@pytest.fixture
def nets(monkeypatch):
    """nets[WEIGHTS] = function: what that network gives."""
    given = {}

    @contextlib.contextmanager
    def network(weights, build, device):
        yield Gives(given[weights.file])

    monkeypatch.setattr(openpose, "network", network)
    return given


def give_bodies(nets, seed, height, width, pictures=1):
    fields, points = (torch.from_numpy(maps)[None] for maps in body_maps(seed, height, width))
    nets["body_pose_model.pth"] = lambda x: (
        fields.repeat(len(x), 1, 1, 1),
        points.repeat(len(x), 1, 1, 1),
    )


def give_parts(nets, seed):
    def maps(count, x):
        return torch.from_numpy(part_maps(seed, count, x.shape[-1] // 8)).repeat(len(x), 1, 1, 1)

    nets["hand_pose_model.pth"] = lambda x: maps(22, x)
    nets["facenet.pth"] = lambda x: maps(71, x)


@pytest.mark.parametrize("case", GOLDEN["bodies"], ids=lambda case: str(case["seed"]))
def test_bodies_are_the_references(nets, case):
    seed, height, width = case["seed"], case["height"], case["width"]
    give_bodies(nets, seed, height, width)
    (found,) = openpose.points_of_bodies(picture(seed, height, width)[None], None)
    assert len(found) == len(case["people"])
    for body, expected in zip(found, case["people"], strict=True):
        places = [point and [point.x, point.y] for point in body]
        assert places == [point and point[:2] for point in expected]
        for point, known in zip(body, expected, strict=True):
            assert point is None or point.confidence == pytest.approx(min(known[2], 1), abs=1e-4)


@pytest.mark.parametrize("case", GOLDEN["hands"], ids=lambda case: str(case["seed"]))
def test_hands_are_the_references(nets, case):
    give_parts(nets, case["seed"])
    crop = picture(case["seed"], case["side"], case["side"])
    (points,) = openpose.points_of_hands([crop], None)
    assert np.nan_to_num(points[:, :2]).tolist() == case["points"]


@pytest.mark.parametrize("case", GOLDEN["faces"], ids=lambda case: str(case["seed"]))
def test_faces_are_the_references(nets, case):
    give_parts(nets, case["seed"])
    crop = picture(case["seed"], case["side"], case["side"])
    (points,) = openpose.points_of_faces([crop], None)
    assert points.shape == (70, 3)
    assert points[~np.isnan(points[:, 0]), :2].tolist() == case["points"]


@pytest.mark.parametrize(
    ("name", "build"),
    [("body", BodyNet), ("hand", lambda: PartNet(22)), ("face", lambda: PartNet(71))],
)
def test_networks_give_what_the_references_give(name, build):
    net = build()
    net.load_state_dict(seeded_weights(net))
    x = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        found = net(x)
    found = found if name == "body" else (found,)
    for maps, known in zip(found, GOLDEN["nets"][name], strict=True):
        assert list(maps.shape) == known["shape"]
        assert maps.double().mean().item() == pytest.approx(known["mean"], rel=1e-5)
        assert maps.double().pow(2).mean().sqrt().item() == pytest.approx(known["rms"], rel=1e-5)
        assert maps[0, :, 1, 1][:8].tolist() == pytest.approx(known["first"], rel=1e-4, abs=1e-6)


def test_names_of_the_public_checkpoints():
    body, hand = set(BodyNet().state_dict()), set(PartNet(22).state_dict())
    assert {"conv4_4_CPM.weight", "conv5_5_CPM_L2.bias", "Mconv7_stage6_L1.weight"} < body
    assert {"conv5_3_CPM.weight", "conv6_2_CPM.bias", "Mconv7_stage6.weight"} < hand
    assert (len(body), len(hand)) == (184, 104)


def arm(shoulder, elbow, wrist, first=2):
    body = [None] * 18
    for index, place in enumerate((shoulder, elbow, wrist)):
        body[first + index] = Keypoint(*place)
    return tuple(body)


def test_hand_box_lies_beyond_the_wrist():
    assert hand_boxes(arm((50, 50), (50, 90), (50, 130)), 300, 300) == (None, (20, 113, 60))
    assert hand_boxes(arm((50, 50), (50, 90), (50, 130), first=5), 300, 300)[0] == (20, 113, 60)


def test_hand_box_is_cut_at_the_edge_and_dropped_when_small():
    assert hand_boxes(arm((50, 50), (50, 90), (50, 130)), 140, 300)[1] == (20, 113, 26)
    assert hand_boxes(arm((50, 50), (50, 90), (50, 130)), 131, 300)[1] is None


def test_face_box_reaches_as_far_as_eyes_and_ears_say():
    body = [None] * 18
    body[0], body[14] = Keypoint(100, 100), Keypoint(90, 95)
    assert face_box(tuple(body), 300, 300) == (70, 70, 60)
    body[17] = Keypoint(140, 100)
    assert face_box(tuple(body), 300, 300) == (40, 40, 120)
    body[0] = None
    assert face_box(tuple(body), 300, 300) is None


def test_no_peak_in_a_faint_map_and_one_in_a_spot_at_the_edge():
    heat = np.full((30, 40), 0.1)
    assert peaks(heat).shape == (0, 3)
    heat[:4, :4] = 5
    assert peaks(heat)[:, :2].tolist() == [[0, 0]]


def test_frames_are_in_pixels_of_the_given_picture(nets):
    give_bodies(nets, 0, 512, 512)
    give_parts(nets, 0)
    small = poses_in(picture(0, 512, 512), hands=False, face=False)[0]
    large = poses_in(picture(0, 1024, 1024), hands=False, face=False)[0]
    assert (large.width, large.height) == (1024, 1024)
    assert large.people[0].body[1].x == 2 * small.people[0].body[1].x


def test_parts_that_are_not_asked_for_are_not_looked_for(nets):
    give_bodies(nets, 0, 512, 512)
    (frame,) = poses_in(picture(0, 512, 512), hands=False, face=False)
    assert len(frame.people) == 4
    assert not any(one.left_hand or one.right_hand or one.face for one in frame.people)


def test_hands_and_faces_lie_in_their_boxes(nets):
    give_bodies(nets, 0, 512, 512)
    give_parts(nets, 0)
    (frame,) = poses_in(picture(0, 512, 512), body=False)
    assert all(person.body == () for person in frame.people)
    assert any(person.face for person in frame.people)
    assert any(person.left_hand or person.right_hand for person in frame.people)
    for person in frame.people:
        assert len(person.face) in (0, 70)
        for point in filter(None, (*person.left_hand, *person.right_hand, *person.face)):
            assert 0 <= point.x <= 512
            assert 0 <= point.y <= 512


def test_batch_is_its_pictures_one_by_one(nets):
    give_bodies(nets, 2, 180, 120)
    give_parts(nets, 2)
    pictures = np.stack([picture(seed, 180, 120) for seed in range(3)])
    alone = [poses_in(one, resolution=0)[0] for one in pictures]
    assert poses_in(pictures, resolution=0) == alone


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 9), (9, 1), (33, 47), (700, 16), (1, 900)]
)
def test_any_size(nets, height, width):
    def noise(x, maps):
        generator = torch.Generator().manual_seed(0)
        shape = (len(x), maps, x.shape[-2] // 8, x.shape[-1] // 8)
        return torch.rand(shape, generator=generator)

    nets["body_pose_model.pth"] = lambda x: (noise(x, 38), noise(x, 19))
    nets["hand_pose_model.pth"] = lambda x: noise(x, 22)
    nets["facenet.pth"] = lambda x: noise(x, 71)
    hint = annotate("openpose", picture(0, height, width), resolution=0)
    assert hint.shape == (height, width, 3)
    assert hint.dtype == np.uint8


def test_a_strip_is_not_enlarged_without_end(nets):
    seen = []

    def body(x):
        seen.append(x.shape)
        return torch.zeros(1, 38, 1, 1), torch.zeros(1, 19, 1, 1)

    nets["body_pose_model.pth"] = body
    poses_in(picture(0, 1, 2000), resolution=0)
    assert seen == [(1, 3, 8, 4096)]


def test_many_small_pictures_go_through_the_network_in_pieces(nets):
    counts = []

    def body(x):
        counts.append(len(x))
        return torch.zeros(len(x), 38, 23, 23), torch.zeros(len(x), 19, 23, 23)

    nets["body_pose_model.pth"] = body
    frames = poses_in(np.zeros((50, 8, 8, 3), np.uint8), resolution=0)
    assert len(frames) == 50
    assert counts == [22, 22, 6]


def test_hint_is_the_drawing(nets):
    give_bodies(nets, 2, 180, 120)
    give_parts(nets, 2)
    image = picture(2, 180, 120)
    before = image.copy()
    hint = annotate("openpose", image, resolution=0, hands=False, face=False)
    assert hint.shape == image.shape
    assert hint.any()
    assert np.array_equal(image, before)
    assert not annotate("openpose", image, resolution=0, body=False, hands=False, face=False).any()


def test_unknown_detector():
    with pytest.raises(AnnotatorError, match="no pose detector 'openpse'; did you mean 'openpose'"):
        poses_in(picture(0, 8, 8), kind="openpse")


def test_no_weights_says_where_to_put_them(no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AnnotatorError, match=r"body_pose_model\.pth \(209 MB\) isn't here"):
        poses_in(picture(0, 16, 16))


def test_only_for_research_is_said():
    from controlnet_pack.annotators import ANNOTATORS

    assert "Not for commercial use: body_pose_model.pth" in ANNOTATORS["openpose"].about
    assert "commercial" not in ANNOTATORS["dwpose"].about
