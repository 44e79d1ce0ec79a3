"""Depth: the hints' bits, the networks' numbers, and pictures on their way in and out."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate, depth_maps, pictures
from controlnet_pack.annotators._depth_anything import V1, V2
from controlnet_pack.annotators.nets import depth_anything as nets

from ..cldm_core.seeded import sample, seeded_array, seeded_tensor, stats
from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())
DEPTH = seeded_array((64, 128), "depth", 3) + np.float32(2)


def digest(hint: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(hint).tobytes()).hexdigest()


def assert_near(found: torch.Tensor, golden: dict) -> None:
    """Within 1e-5 of the largest value that the reference gave."""
    values, total = torch.tensor(golden["values"]), torch.tensor(golden["stats"])
    assert (sample(found, len(values)) - values).abs().max() < 1e-5 * values.abs().max()
    assert (stats(found) - total).abs().max() < 1e-5 * total.abs().max()


def test_near_is_white_has_the_references_bits():
    hint = pictures.as_rgb(depth_maps.near_is_white(DEPTH))
    assert digest(hint) == GOLDEN["hints"]["near_is_white"]


@pytest.mark.parametrize(
    ("name", "steepness", "background"), [("normals", np.pi * 2, 0.1), ("normals, steep", 1.0, 0.4)]
)
def test_normals_have_the_references_bits(name, steepness, background):
    hint = depth_maps.normals(DEPTH, steepness=steepness, background=background)
    assert digest(hint) == GOLDEN["hints"][name]


@pytest.mark.parametrize(
    ("name", "gamma"), [("far_is_black", False), ("far_is_black, gamma", True)]
)
def test_far_is_black_has_the_references_bits(name, gamma):
    hint = pictures.as_rgb(depth_maps.far_is_black(DEPTH, gamma=gamma))
    assert digest(hint) == GOLDEN["hints"][name]


def test_depths_that_are_all_equal_give_black():
    flat = np.full((4, 5), 3, np.float32)
    assert not depth_maps.near_is_white(flat).any()
    assert not depth_maps.far_is_black(flat).any()


def test_normals_of_a_flat_depth_look_at_the_viewer():
    hint = depth_maps.normals(np.full((4, 5), 3, np.float32), steepness=1.0, background=0.1)
    assert np.array_equal(hint, np.full((4, 5, 3), (255, 127, 127), np.uint8))


@pytest.mark.parametrize("size", [(56, 56), (56, 84), (70, 56)])
@pytest.mark.parametrize(
    ("name", "build"), [("depth_anything", nets.build_v1), ("depth_anything_v2", nets.build_v2)]
)
def test_depth_anything_gives_the_references_numbers(name, build, size):
    net = build(tiny_nets.depth_anything()).eval()
    with torch.no_grad():
        found = net(pixel_values=seeded_tensor((1, 3, *size), "picture", 1)).predicted_depth
    assert_near(found, GOLDEN["networks"][f"{name} {size[0]}x{size[1]}"])


def test_depth_anything_takes_the_files_of_the_hub_too():
    authors = tiny_nets.depth_anything()
    public = nets.public_names(authors)
    assert "backbone.encoder.layer.0.attention.attention.query.weight" in public
    pixels = picture(1, 40, 60, 3)
    with torch.no_grad():
        found = [nets.nearness(nets.build_v2(one).eval(), pixels) for one in (authors, public)]
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pretrained.norm.bias": None}, "lacks backbone.layernorm.bias: another file?"),
        ({"extra": torch.ones(1)}, "has an unknown extra: another file?"),
        (
            {"pretrained.norm.bias": torch.ones(3)},
            "has another shape for backbone.layernorm.bias: another file?",
        ),
        (
            {"pretrained.pos_embed": None},
            "lacks backbone.embeddings.position_embeddings: it isn't Depth Anything's.",
        ),
    ],
)
def test_another_file_is_refused(change, sentence):
    tensors = {**tiny_nets.depth_anything(), **change}
    usable = {name: value for name, value in tensors.items() if value is not None}
    with pytest.raises(
        AnnotatorError, match=f"^The file of weights {sentence}".replace("?", r"\?")
    ):
        nets.build_v2(usable)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (518, 518, (518, 518)),
        (480, 640, (518, 686)),
        (1000, 100, (4634, 462)),
        (1, 1000, (42, 46326)),
        (768, 512, (784, 518)),
    ],
)
def test_input_is_whole_patches_and_not_too_long(height, width, expected):
    found = nets.input_size(height, width, 518, 14)
    assert found == expected
    assert not any(side % 14 for side in found)


def test_input_is_resampled_as_the_reference_does():
    image = picture(45, 61, 3)
    wide = cv2.resize(image / 255.0, (70, 56), interpolation=cv2.INTER_CUBIC)
    wide = (wide - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = wide.transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(nets.prepared(image, 56, 70), expected)


@pytest.mark.parametrize(
    ("name", "weights"), [("depth_anything", V1["small"]), ("depth_anything_v2", V2["small"])]
)
def test_hint_spans_black_to_white_at_the_pictures_size(give, name, weights):
    give(weights, tiny_nets.depth_anything())
    hint = annotate(name, picture(2, 37, 61, 3), resolution=0)
    assert hint.shape == (2, 37, 61, 3)
    assert [(one.min(), one.max()) for one in hint] == [(0, 255), (0, 255)]


def test_size_of_the_model_chooses_the_weights(give):
    give(V2["base"], tiny_nets.depth_anything(seed=1))
    give(V2["small"], tiny_nets.depth_anything(seed=2))
    small, base = (
        annotate("depth_anything_v2", picture(30, 30, 3), resolution=0, model=model)
        for model in ("small", "base")
    )
    assert not np.array_equal(small, base)


def test_larger_models_are_marked_as_not_commercial():
    assert [one.commercial for one in V2.values()] == [True, False, False]
    assert all(one.commercial for one in V1.values())
