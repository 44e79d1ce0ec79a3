"""Segments: the colours of the classes, and the network's classes on their way to them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators._segments import WEIGHTS
from controlnet_pack.annotators.nets import upernet as nets
from controlnet_pack.annotators.palettes import ade20k

from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())["hints"]


def test_colours_are_the_references():
    assert ade20k().shape == (150, 3)
    assert hashlib.sha256(ade20k().tobytes()).hexdigest() == GOLDEN["ade20k"]


def test_sizes_are_read_from_the_file():
    config = nets.build(tiny_nets.segments()).config
    assert config.backbone_config.depths == [1, 1, 2, 1]
    assert config.backbone_config.hidden_sizes == [8, 16, 24, 32]
    assert (config.hidden_size, config.num_labels) == (16, 150)


def test_hint_has_the_colour_of_each_pixels_class(give):
    tensors = tiny_nets.segments()
    give(WEIGHTS, tensors)
    images = picture(2, 64, 96, 3)
    mean, deviation = torch.tensor(nets.MEAN), torch.tensor(nets.DEVIATION)
    pixels = ((torch.from_numpy(images) / 255 - mean) / deviation).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = nets.build(tensors).eval()(pixel_values=pixels).logits
    expected = ade20k()[logits.argmax(1).numpy()]
    hint = annotate("segments", images, resolution=0)
    assert np.array_equal(hint, expected)
    assert len(np.unique(hint.reshape(-1, 3), axis=0)) > 3


def test_odd_sizes_are_padded_with_their_edge_and_cut_back(give):
    give(WEIGHTS, tiny_nets.segments())
    image = picture(37, 50, 3)
    wide = np.pad(image, ((0, 27), (0, 14), (0, 0)), mode="edge")
    hint = annotate("segments", image, resolution=0)
    assert np.array_equal(hint, annotate("segments", wide, resolution=0)[:37, :50])


def test_another_file_is_refused():
    tensors = tiny_nets.segments()
    del tensors["decode_head.classifier.weight"]
    with pytest.raises(AnnotatorError, match=r"lacks decode_head\.classifier\.weight: it isn't"):
        nets.build(tensors)


def test_a_missing_tensor_is_named():
    tensors = tiny_nets.segments()
    del tensors["decode_head.classifier.bias"]
    with pytest.raises(AnnotatorError, match=r"lacks decode_head\.classifier\.bias: another file"):
        nets.build(tensors)
