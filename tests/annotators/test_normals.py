"""Surface normals: the network's numbers, its key names, and its hint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators._normal_bae import WEIGHTS
from controlnet_pack.annotators.nets import normal_bae as nets
from controlnet_pack.annotators.nets.efficientnet import SameConv

from ..cldm_core.seeded import sample, seeded_tensor, stats
from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())["networks"]


def test_network_gives_the_references_numbers():
    with torch.device("meta"):
        shapes = nets.NormalBae()
    net = nets.build(tiny_nets.seeded_net(shapes, 11)).eval()
    for size in ((64, 64), (64, 128)):
        golden = GOLDEN[f"normal_bae {size[0]}x{size[1]}"]
        with torch.no_grad():
            found = net(seeded_tensor((2, 3, *size), "picture", 1))
        values, total = torch.tensor(golden["values"]), torch.tensor(golden["stats"])
        assert (sample(found, len(values)) - values).abs().max() < 1e-5 * values.abs().max()
        assert (stats(found) - total).abs().max() < 1e-5 * total.abs().max()


def test_sizes_are_read_from_the_file():
    tensors = tiny_nets.normal_bae()
    net = nets.build(tensors)
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }


def test_another_file_is_refused():
    with pytest.raises(AnnotatorError, match=r"it isn't scannet\.pt"):
        nets.build({"weight": torch.ones(1)})


@pytest.mark.parametrize(("side", "expected"), [(7, (1, 1)), (8, (0, 1))])
def test_uneven_padding_goes_right_and_below(side, expected):
    conv = SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    picture = torch.ones(1, 1, side, side)
    before, after = expected
    corners = conv(picture)[0, 0, [0, -1], [0, -1]].tolist()
    assert corners == [(3 - before) ** 2, (3 - after) ** 2]


def test_hint_is_a_unit_normal_in_every_pixel(give):
    give(WEIGHTS, {"model": tiny_nets.normal_bae()})
    hint = annotate("normal_bae", picture(2, 33, 47, 3), resolution=0)
    assert hint.shape == (2, 33, 47, 3)
    length = np.linalg.norm(hint / 127.5 - 1, axis=-1)
    assert abs(length - 1).max() < 0.02


def test_hint_is_the_networks_normal_truncated(give):
    tensors = tiny_nets.normal_bae()
    give(WEIGHTS, tensors)
    image = picture(64, 128, 3)
    net = nets.build(tensors).eval()
    mean, deviation = torch.tensor(nets.MEAN), torch.tensor(nets.DEVIATION)
    pixels = ((torch.from_numpy(image) / 255 - mean) / deviation).permute(2, 0, 1)
    with torch.no_grad():
        normal = net(pixels[None])[0, :3].permute(1, 2, 0)
    expected = (((normal + 1) * 0.5).clip(0, 1).numpy() * 255).astype(np.uint8)
    assert np.array_equal(annotate("normal_bae", image, resolution=0), expected)
