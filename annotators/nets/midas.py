"""MiDaS (Ranftl et al., 1907.01341): the file of DPT-Hybrid, and nearness from pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import Unavailable
from ..keeper import fill, outputs
from .dpt_hybrid import DptHybrid, Sizes
from .frames import as_array, as_tensor, padded

MULTIPLE = 64
TRUNK = "pretrained.model.patch_embed.backbone"
# In the file, and of no use for depth: the classifier, and a unit that has nothing to add to.
UNUSED = ("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1.")
STANDARDISED = re.compile(rf"^{re.escape(TRUNK)}\..*conv\d?\.weight$")


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of `dpt_hybrid-midas-501f0c75.pt`, or a smaller one: the tensors say which."""
    try:
        sizes = _sizes(tensors)
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't DPT-Hybrid's."
        ) from None
    with torch.device("meta"):
        net = DptHybrid(sizes)
    ready = {
        name: standardised(value.float()) if STANDARDISED.match(name) else value
        for name, value in tensors.items()
    }
    return fill(net, ready, unused=UNUSED)


def standardised(weight: Tensor) -> Tensor:
    """A convolution's weight with mean 0 and deviation 1 for each output channel."""
    rows = weight.flatten(1)[None]
    return F.batch_norm(rows, None, None, training=True, momentum=0, eps=1e-8).view_as(weight)


def _sizes(tensors: Mapping[str, Tensor]) -> Sizes:
    def shape(name: str) -> torch.Size:
        return tensors[name].shape

    def count(row: str) -> int:
        return len({n[len(row) :].partition(".")[0] for n in tensors if n.startswith(row)})

    model, decoder = "pretrained.model", "scratch"
    stages = []
    for number in range(3):
        row = f"{TRUNK}.stages.{number}.blocks."
        channels, inner = shape(f"{row}0.conv3.weight")[:2]
        stages.append((count(row), inner, channels))
    return Sizes(
        stem=shape(f"{TRUNK}.stem.conv.weight")[0],
        stages=tuple(stages),
        width=shape(f"{model}.pos_embed")[2],
        blocks=count(f"{model}.blocks."),
        places=shape(f"{model}.pos_embed")[1] - 1,
        hidden=shape(f"{model}.blocks.0.mlp.fc1.weight")[0],
        levels=(
            shape("pretrained.act_postprocess3.3.weight")[0],
            shape("pretrained.act_postprocess4.3.weight")[0],
        ),
        fused=shape(f"{decoder}.layer1_rn.weight")[0],
        last=shape(f"{decoder}.output_conv.2.weight")[0],
    )


def nearness(net: Any, images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W), larger is nearer, of pictures (N, H, W, 3) uint8 at their own size."""
    found = padded(partial(outputs, net), as_tensor(images, net) / 127.5 - 1, MULTIPLE)
    return as_array(found)[..., 0]
