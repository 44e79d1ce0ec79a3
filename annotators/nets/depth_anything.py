"""Depth Anything V1 and V2: DINOv2 with a DPT head (Yang et al., 2401.10891 and 2406.09414).

The network is transformers' `DepthAnythingForDepthEstimation`; its files and those of the authors
(`depth_anything_vits14.pth`, `depth_anything_v2_vitl.pth`, ...) are both taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import needed
from ..errors import Unavailable
from ..keeper import outputs
from ..pictures import each
from .pretrained import filled

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_WIDTH = 64
LONGEST = 8
"""A network's picture has at most so many times the pixels of the square it was trained on."""

# The authors' names, and transformers' public ones.
RENAMED = (
    (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
    (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", "backbone.layernorm."),
    (r"^pretrained\.blocks\.", "backbone.encoder.layer."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
)


def build_v1(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The first version: its head reads the last four blocks."""
    tensors = public_names(tensors)
    blocks = _blocks(tensors)
    return _built(tensors, [blocks - 3, blocks - 2, blocks - 1, blocks])


def build_v2(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The second version: its head reads four blocks spread over the depth."""
    tensors = public_names(tensors)
    blocks = _blocks(tensors)
    first = 5 if blocks == 24 else blocks // 4
    return _built(tensors, [first, blocks // 2, blocks * 3 // 4, blocks])


def public_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of either kind of file under transformers' public names."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        block = re.match(r"^pretrained\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)$", name)
        if block:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                place = f"backbone.encoder.layer.{block[1]}.attention.attention.{part}.{block[2]}"
                found[place] = rows
        else:
            found[_renamed(name)] = value
    return found


def _renamed(name: str) -> str:
    coarse = re.match(r"^depth_head\.scratch\.(layer|refinenet)(\d)(?:_rn)?\.(.+)$", name)
    if coarse and coarse[1] == "layer":
        return f"neck.convs.{int(coarse[2]) - 1}.{coarse[3]}"
    if coarse:
        name = f"neck.fusion_stage.layers.{4 - int(coarse[2])}.{coarse[3]}"
    for pattern, place in RENAMED:
        name = re.sub(pattern, place, name)
    return name


def _blocks(tensors: Mapping[str, Tensor]) -> int:
    gains = re.compile(r"^backbone\.encoder\.layer\.\d+\.norm1\.weight$")
    return sum(bool(gains.match(name)) for name in tensors)


def _built(tensors: Mapping[str, Tensor], read: list[int]) -> nn.Module:
    """The network whose sizes are those of the tensors; the head reads after the blocks `read`."""
    transformers = needed("transformers")
    try:
        places, width = tensors["backbone.embeddings.position_embeddings"].shape[1:]
        patch = tensors["backbone.embeddings.patch_embeddings.projection.weight"].shape[-1]
        wide = tensors["backbone.encoder.layer.0.mlp.fc1.weight"].shape[0]
        sizes = [
            tensors[f"neck.reassemble_stage.layers.{level}.projection.weight"].shape[0]
            for level in range(4)
        ]
        fused = tensors["neck.convs.0.weight"].shape[0]
        last = tensors["head.conv2.weight"].shape[0]
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't Depth Anything's."
        ) from None
    backbone = transformers.Dinov2Config(
        hidden_size=width,
        num_hidden_layers=_blocks(tensors),
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=wide // width,
        image_size=patch * math.isqrt(places - 1),
        patch_size=patch,
        out_indices=read,
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        patch_size=patch,
        neck_hidden_sizes=sizes,
        fusion_hidden_size=fused,
        head_hidden_size=last,
    )
    net: Any = filled(transformers.DepthAnythingForDepthEstimation, config, tensors)
    embeddings = net.backbone.embeddings
    embeddings.interpolate_pos_encoding = partial(_positions, embeddings)
    return net  # type: ignore[no-any-return]


def _positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """(1, 1 + places, width) position codes for a picture of this size.

    With the tenth of a patch that the authors' DINOv2 adds before it resamples; transformers
    leaves it out, which moves the depth by some tenths of a percent.
    """
    codes: Tensor = embeddings.position_embeddings
    patch = embeddings.config.patch_size
    side = math.isqrt(codes.shape[1] - 1)
    high, wide = height // patch, width // patch
    if (high, wide) == (side, side):
        return codes
    grid = codes[:, 1:].float().reshape(1, side, side, -1).movedim(-1, 1)
    scale = ((high + 0.1) / side, (wide + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")[..., :high, :wide]
    return torch.cat([codes[:, :1], grid.flatten(2).mT.to(codes.dtype)], dim=1)


def nearness(net: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, H, W), larger is nearer, of pictures (N, H, W, 3): disparity up to scale and shift."""
    like = next(net.parameters())
    backbone = net.config.backbone_config
    _, height, width, _ = images.shape
    height, width = input_size(height, width, backbone.image_size, backbone.patch_size)
    ready = each(partial(prepared, height=height, width=width), images)
    pixels = torch.from_numpy(np.stack(ready)).to(like)
    found = outputs(lambda some: net(pixel_values=some).predicted_depth, pixels)[:, None].float()
    found = F.interpolate(found, images.shape[1:3], mode="bilinear", align_corners=True)
    values: NDArray[np.float32] = found[:, 0].cpu().numpy()
    return values


def input_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
    """The size the network sees: `short` or a little more at the short side, whole patches.

    A picture longer than 1 : LONGEST is seen smaller, so that it fits into memory.
    """
    scale = short / min(height, width)
    most = math.sqrt(LONGEST * short * short / (height * width))
    least = short if scale <= most else patch
    scale = min(scale, most)

    def whole(side: float) -> int:
        near = round(side / patch) * patch
        return near if near >= least else math.ceil(side / patch) * patch

    return max(patch, whole(scale * height)), max(patch, whole(scale * width))


def prepared(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """(3, height, width) normalised, by way of float64 and cubic resampling as the authors do."""
    import cv2

    pixels = cv2.resize(image / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    planes = np.empty((3, height, width), np.float32)
    for channel, plane in enumerate(planes):
        centred = pixels[..., channel] - MEAN[channel]
        np.divide(centred, DEVIATION[channel], out=plane, casting="same_kind")
    return planes
