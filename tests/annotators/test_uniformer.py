"""Segments by UniFormer: the network's numbers and key names, and its hint."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators._uniformer import WEIGHTS
from controlnet_pack.annotators.nets import uniformer as nets
from controlnet_pack.annotators.palettes import ade20k

from ..cldm_core.seeded import sample, seeded_tensor, shapes_of, stats
from . import tiny_nets
from .pictures import picture

DATA = Path(__file__).parent / "data"
GOLDEN = json.loads((DATA / "segments.json").read_text())["uniformer"]
PUBLIC = nets.Sizes((3, 4, 8, 3), (64, 128, 320, 512), 512, 150)


def squares(side: int = 512) -> np.ndarray:
    """(side, side, 3): patches of one colour each, with some noise."""
    tiles = np.kron(picture(16, 16, 3), np.ones((side // 16, side // 16, 1), np.uint8))
    return tiles // 2 + picture(side, side, 3) // 4


def test_public_net_has_the_references_keys():
    with torch.device("meta"):
        net = nets.Segmenter(PUBLIC)
    lines = sorted(f"{name} {shape}" for name, shape in shapes_of(net).items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == GOLDEN["keys"]


def test_network_gives_the_references_numbers():
    with torch.device("meta"):
        shapes = nets.Segmenter(PUBLIC)
    net = nets.build(tiny_nets.seeded_net(shapes, 23)).eval()
    with torch.no_grad():
        found = net(seeded_tensor((2, 3, 64, 96), "picture", 1))
    values, total = torch.tensor(GOLDEN["values"]), torch.tensor(GOLDEN["stats"])
    assert found.shape == (2, 150, 16, 24)
    assert (sample(found, len(values)) - values).abs().max() < 1e-5 * values.abs().max()
    assert (stats(found) - total).abs().max() < 1e-5 * total.abs().max()


def test_hint_is_the_references(give):
    """At its own size the reference doesn't resize; where two classes tie, machines may differ."""
    give(WEIGHTS, {"state_dict": tiny_nets.uniformer(), "meta": {"epoch": 1}})
    hint = annotate("uniformer", squares(), resolution=0, device="cpu")
    expected = np.frombuffer(bytes.fromhex(GOLDEN["hint"]), np.uint8).reshape(64, 64)
    assert len(np.unique(expected)) > 3
    assert (hint[4::8, 4::8] == ade20k()[expected]).all(axis=-1).mean() > 0.999


def test_odd_sizes_are_padded_with_their_edge_and_cut_back(give):
    give(WEIGHTS, tiny_nets.uniformer())
    image = picture(37, 50, 3)
    wide = np.pad(image, ((0, 27), (0, 14), (0, 0)), mode="edge")
    hint = annotate("uniformer", image, resolution=0, device="cpu")
    assert np.array_equal(hint, annotate("uniformer", wide, resolution=0, device="cpu")[:37, :50])


def test_sizes_are_read_from_the_file():
    sizes = nets.sizes_of(tiny_nets.uniformer())
    assert sizes == ([1, 1, 1, 1], [8, 16, 64, 64], 16, 150)


def test_another_file_is_refused():
    with pytest.raises(AnnotatorError, match=r"lacks backbone\.patch_embed1\..*it isn't UniFormer"):
        nets.build({"weight": torch.ones(1)})
