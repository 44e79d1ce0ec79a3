"""ZoeDepth (Bhat et al., 2302.12288): distances in metres; the network is transformers'."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import needed
from ..errors import Unavailable
from .frames import as_tensor
from .pretrained import filled

HEAD_WIDTH = 64
MULTIPLE = 32
HIGH, WIDE = 384, 512
"""The size of the pictures it was trained on."""
AT_ONCE = 4
"""How many pictures go through the network together: more need much memory."""
DOMAINS = (("nyu", 10.0), ("kitti", 80.0))
"""Indoor and outdoor pictures, and the metres that they reach."""


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """`ZoeDepthForDepthEstimation` of the tensors' sizes, with one domain or both."""
    transformers = needed("transformers")
    try:
        config = _config(transformers, tensors)
    except (KeyError, StopIteration) as error:
        what = error.args[0] if error.args else "relative_position_bias_table"
        raise Unavailable(
            f"The file of weights lacks {what}: it isn't ZoeDepth's of transformers."
        ) from None
    net: Any = filled(transformers.ZoeDepthForDepthEstimation, config, tensors)
    net.metric_head = OneByOne(net.metric_head)
    return net  # type: ignore[no-any-return]


class OneByOne(nn.Module):
    """A head that is given the pictures of a batch one by one: together they vote for a domain."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, **features: Any) -> tuple[Tensor, None]:
        """The depths (N, 1, H, W) of features whose first axis is the picture."""

        def of(number: int, value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[number : number + 1]
            return [of(number, one) for one in value]

        depths = [
            self.head(**{name: of(number, value) for name, value in features.items()})[0]
            for number in range(len(features["bottleneck"]))
        ]
        return torch.cat(depths), None


def _config(transformers: Any, tensors: Mapping[str, Tensor]) -> Any:
    def rows(name: str) -> int:
        return tensors[name].shape[0]

    width = tensors["backbone.embeddings.cls_token"].shape[-1]
    blocks = [re.match(r"backbone\.encoder\.layer\.(\d+)\.", name) for name in tensors]
    depth = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    places = next(v for n, v in tensors.items() if n.endswith("relative_position_bias_table"))
    side = (math.isqrt(places.shape[0] - 3) + 1) // 2
    kernel = tensors["backbone.embeddings.patch_embeddings.projection.weight"]
    backbone = transformers.BeitConfig(
        image_size=side * kernel.shape[-1],
        patch_size=kernel.shape[-1],
        num_hidden_layers=depth,
        hidden_size=width,
        intermediate_size=rows("backbone.encoder.layer.0.intermediate.dense.bias"),
        num_attention_heads=width // HEAD_WIDTH,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=[f"stage{depth * part // 4}" for part in (1, 2, 3, 4)],
    )
    both = "metric_head.seed_bin_regressors.nyu.conv2.bias" in tensors
    regressor = f"metric_head.seed_bin_regressor{'s.nyu' if both else ''}.conv2.bias"
    domains = [
        {"name": name, "n_bins": rows(regressor), "min_depth": 1e-3, "max_depth": reach}
        for name, reach in DOMAINS[: 2 if both else 1]
    ]
    chooser: dict[str, int] = {}
    if both:
        chooser = {
            "num_patch_transformer_layers": 4,
            "patch_transformer_hidden_size": rows(
                "metric_head.patch_transformer.embedding_convPxP.bias"
            ),
            "patch_transformer_intermediate_size": rows(
                "metric_head.patch_transformer.transformer_encoder.0.linear1.bias"
            ),
            "patch_transformer_num_attention_heads": 4,
        }
    return transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[
            rows(f"neck.reassemble_stage.layers.{level}.projection.bias") for level in range(4)
        ],
        fusion_hidden_size=rows("neck.convs.0.weight"),
        num_relative_features=rows("relative_head.conv2.bias"),
        bottleneck_features=rows("metric_head.conv2.bias"),
        bin_embedding_dim=rows("metric_head.seed_projector.conv2.bias"),
        bin_configurations=domains,
        **chooser,
    )


def distance(net: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W) metres of pictures (N, H, W, 3), the mean of each and of its mirrored one."""
    pixels = as_tensor(images, net) / 255
    found = [
        (framed(net, some) + framed(net, some.flip(3)).flip(3)) / 2
        for some in pixels.split(1 if pixels.device.type == "cpu" else AT_ONCE)
    ]
    metres: NDArray[np.float32] = torch.cat(found)[:, 0].float().cpu().numpy()
    return metres


def framed(net: Any, pixels: Tensor) -> Tensor:
    """(N, 1, H, W) of (N, 3, H, W) from 0 to 1, seen with a mirrored frame that is cut off again.

    As huggingface/controlnet_aux `DepthModel._infer_with_pad_aug`.
    """
    height, width = pixels.shape[-2:]
    high, wide = int(math.sqrt(height / 2) * 3), int(math.sqrt(width / 2) * 3)
    mode = "reflect" if high < height and wide < width else "replicate"
    pixels = F.pad(pixels, (wide, wide, high, high), mode=mode)
    outer = pixels.shape[-2:]
    small = F.interpolate(pixels, input_size(*outer), mode="bilinear", align_corners=True)
    found: Tensor = net(pixel_values=(small - 0.5) / 0.5).predicted_depth[:, None]
    if found.shape[-2:] != outer:
        found = F.interpolate(found, outer, mode="bicubic", align_corners=False)
    return found[..., high : high + height, wide : wide + width]


def input_size(height: int, width: int) -> tuple[int, int]:
    """The size that the network sees: near its training's, the aspect kept, in whole patches."""
    by_height, by_width = HIGH / height, WIDE / width
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height
    high, wide = (round(scale * side / MULTIPLE) * MULTIPLE for side in (height, width))
    return max(high, MULTIPLE), max(wide, MULTIPLE)
