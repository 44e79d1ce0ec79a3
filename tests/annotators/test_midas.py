"""MiDaS: the network's numbers and file, its depth, and the normals of that depth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate, depth_maps, pictures
from controlnet_pack.annotators._midas import WEIGHTS
from controlnet_pack.annotators.nets import midas as nets
from controlnet_pack.annotators.nets.dpt_hybrid import DptHybrid

from ..cldm_core.seeded import sample, seeded_tensor, stats
from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())["networks"]


def test_network_gives_the_references_numbers(one_thread):
    with torch.device("meta"):
        shapes = DptHybrid()
    net = nets.build(tiny_nets.seeded_net(shapes, 13)).eval()
    for size in ((64, 64), (64, 96)):
        golden = GOLDEN[f"midas {size[0]}x{size[1]}"]
        with torch.no_grad():
            found = net(seeded_tensor((2, 3, *size), "picture", 1))
        values, total = torch.tensor(golden["values"]), torch.tensor(golden["stats"])
        assert (sample(found, len(values)) - values).abs().max() < 1e-5 * values.abs().max()
        assert (stats(found) - total).abs().max() < 1e-5 * total.abs().max()


def test_only_the_convolutions_of_the_resnet_are_standardised():
    tensors = tiny_nets.midas()
    state = nets.build(tensors).state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, tensors[name])}
    convolutions = {name for name in state if name.startswith(nets.TRUNK) and "conv" in name}
    assert changed == convolutions
    weight = state[f"{nets.TRUNK}.stages.0.blocks.0.conv2.weight"].flatten(1)
    assert weight.mean(1).abs().max() < 1e-6
    assert (weight.std(1, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pretrained.model.pos_embed", "lacks pretrained.model.pos_embed: it isn't DPT-Hybrid's."),
        ("scratch.output_conv.4.bias", "lacks scratch.output_conv.4.bias: another file"),
    ],
)
def test_another_file_is_refused(name, sentence):
    tensors = tiny_nets.midas()
    del tensors[name]
    with pytest.raises(AnnotatorError, match=f"The file of weights {sentence}"):
        nets.build(tensors)


@pytest.fixture
def nearness(give) -> np.ndarray:
    give(WEIGHTS, tiny_nets.midas())
    net = nets.build(tiny_nets.midas()).eval()
    with torch.no_grad():
        return nets.nearness(net, picture(2, 37, 70, 3))


def test_depth_is_each_pictures_own(nearness):
    hint = annotate("midas", picture(2, 37, 70, 3), resolution=0)
    expected = np.stack([depth_maps.near_is_white(one) for one in nearness])
    assert np.array_equal(hint, pictures.as_rgb(expected))


def test_normals_are_of_that_depth(nearness):
    hint = annotate("midas_normal", picture(2, 37, 70, 3), resolution=0, a=3.0, bg_threshold=0.3)
    expected = [depth_maps.normals(one, steepness=3.0, background=0.3) for one in nearness]
    assert np.array_equal(hint, expected)


def test_background_is_flat(nearness):
    hint = annotate("midas_normal", picture(2, 37, 70, 3), resolution=0, bg_threshold=1.0)
    flat = depth_maps.in_unit(nearness[0]) < 1
    assert np.array_equal(hint[0][flat], np.full((flat.sum(), 3), (255, 127, 127), np.uint8))
