"""ZoeDepth: the way of a picture to the network and back, its files, and the hint."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from controlnet_pack.annotators import AnnotatorError, annotate, depth_maps, pictures
from controlnet_pack.annotators._zoe import MODELS
from controlnet_pack.annotators.nets import zoe as nets

from ..cldm_core.seeded import sample, stats
from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "depths.json").read_text())["networks"]


class Ramp(nn.Module):
    """A depth at half of the size that mirrored pictures do not mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        ramp = torch.linspace(0, 1, pixel_values.shape[-1])
        depth = F.avg_pool2d((pixel_values.mean(1, keepdim=True) + ramp) ** 2, 2)
        return SimpleNamespace(predicted_depth=depth[:, 0])


@pytest.mark.parametrize("size", [(45, 61), (128, 64), (64, 64)])
def test_frame_resampling_and_mirroring_are_the_references(size):
    golden = GOLDEN[f"zoe {size[0]}x{size[1]}"]
    with torch.no_grad():
        found = torch.from_numpy(nets.distance(Ramp(), picture(1, *size, 3))[0])
    values, total = torch.tensor(golden["values"]), torch.tensor(golden["stats"])
    assert (sample(found, len(values)) - values).abs().max() < 1e-5 * values.abs().max()
    assert (stats(found) - total).abs().max() < 1e-5 * total.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (384, 512)), (640, 480, (672, 512)), (1, 1000, (32, 512)), (1000, 1, (384, 32))],
)
def test_input_is_near_the_trained_size(height, width, expected):
    assert nets.input_size(height, width) == expected


@pytest.mark.parametrize("domains", [1, 2])
def test_domains_and_sizes_are_read_from_the_file(domains):
    config = nets.build(tiny_nets.zoe(domains)).config
    assert [one["name"] for one in config.bin_configurations] == ["nyu", "kitti"][:domains]
    assert config.backbone_config.image_size == 32
    assert config.neck_hidden_sizes == [8, 16, 24, 32]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("backbone.embeddings.cls_token", "it isn't ZoeDepth's of transformers"),
        ("relative_head.conv3.bias", r"lacks relative_head\.conv3\.bias: another file"),
    ],
)
def test_another_file_is_refused(name, sentence):
    tensors = tiny_nets.zoe(1)
    del tensors[name]
    with pytest.raises(AnnotatorError, match=sentence):
        nets.build(tensors)


@pytest.mark.parametrize("gamma", [False, True])
def test_hint_is_the_distance_stretched(give, gamma):
    give(MODELS["nyu"], tiny_nets.zoe(1))
    image = picture(37, 50, 3)
    with torch.no_grad():
        (metres,) = nets.distance(nets.build(tiny_nets.zoe(1)).eval(), image[None])
    hint = annotate("zoe", image, resolution=0, model="nyu", gamma=gamma)
    assert np.array_equal(hint, pictures.as_rgb(depth_maps.far_is_black(metres, gamma=gamma)))


def test_pictures_of_a_batch_do_not_vote_together(give):
    give(MODELS["nyu-kitti"], tiny_nets.zoe(2))
    images = picture(2, 33, 33, 3)
    images[1] //= 8
    both = annotate("zoe", images, resolution=0)
    assert np.array_equal(both[1], annotate("zoe", images[1], resolution=0))


def test_pictures_that_go_through_the_network_together_do_not_vote_together():
    net = nets.build(tiny_nets.zoe(2)).eval()
    pixels = torch.from_numpy(picture(2, 3, 32, 32) / np.float32(255))
    pixels[1] /= 8
    with torch.no_grad():
        both = net(pixel_values=pixels).predicted_depth
        alone = torch.cat([net(pixel_values=one[None]).predicted_depth for one in pixels])
    assert (both - alone).abs().max() < 1e-4 * alone.abs().max()
    assert (both[0] - both[1]).abs().max() > 1e-2 * alone.abs().max()


def test_a_picture_that_cant_be_written_to_does(give):
    give(MODELS["nyu"], tiny_nets.zoe(1))
    image = picture(1, 9, 3)
    image.flags.writeable = False
    assert annotate("zoe", image, resolution=0, model="nyu").shape == (1, 9, 3)
