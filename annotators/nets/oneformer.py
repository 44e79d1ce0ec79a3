"""OneFormer on Swin (Jain et al., 2211.06220; Liu et al., 2103.14030), as transformers has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from .frames import as_tensor, standardised
from .pretrained import filled

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MULTIPLE = 32
TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""CLIP's tokens of "the task is semantic"; zeros follow."""
UNUSED = ("criterion.", "model.text_mapper.")
"""Only for training."""
OPTIONAL = (".relative_position_index", ".swin.layernorm.weight", ".swin.layernorm.bias")
"""transformers 5 computes the first; it has a norm behind the last stage, which isn't used."""

_PIXELS = "model.pixel_level_module."
_SWIN = f"{_PIXELS}encoder."
_DECODER = "model.transformer_module."


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """`OneFormerModel` of the tensors' sizes, under the public names of the segmenting model.

    That one needs SciPy, only to be made.
    """
    transformers = needed("transformers")
    try:
        config = transformers.OneFormerConfig(**_sizes(transformers, tensors))
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't OneFormer's on Swin."
        ) from None
    model = transformers.OneFormerModel
    return filled(model, config, tensors, unused=UNUSED, optional=OPTIONAL)


def _sizes(transformers: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    def size(name: str, axis: int = 0) -> int:
        return tensors[name].shape[axis]

    queries = f"{_DECODER}queries_embedder.weight"
    layer = f"{_PIXELS}decoder.encoder.layers"
    return {
        "backbone_config": _swin(transformers, tensors),
        "num_labels": size(f"{_DECODER}decoder.class_embed.weight") - 1,
        "num_queries": size(queries),
        "hidden_dim": size(queries, 1),
        "conv_dim": size(f"{_PIXELS}decoder.mask_projection.weight", 1),
        "mask_dim": size(f"{_PIXELS}decoder.mask_projection.weight"),
        "encoder_layers": _count(tensors, f"{layer}.", ".fc1.bias"),
        "encoder_feedforward_dim": size(f"{layer}.0.fc1.weight"),
        # transformers counts the prediction before the first layer too.
        "decoder_layers": _count(tensors, f"{_DECODER}decoder.layers.", ".ffn.linear1.bias") + 1,
        "dim_feedforward": size(f"{_DECODER}decoder.layers.0.ffn.linear1.weight"),
        "query_dec_layers": _count(
            tensors, f"{_DECODER}decoder.query_transformer.decoder.layers.", ".linear1.bias"
        ),
        "task_seq_len": size("model.task_encoder.task_mlp.layers.0.0.weight", 1),
    }


def _swin(transformers: Any, tensors: Mapping[str, Tensor]) -> Any:
    rows = [f"{_SWIN}encoder.layers.{stage}.blocks." for stage in range(4)]
    tables = [tensors[f"{row}0.attention.self.relative_position_bias_table"].shape for row in rows]
    return transformers.SwinConfig(
        embed_dim=tensors[f"{_SWIN}embeddings.patch_embeddings.projection.weight"].shape[0],
        depths=[_count(tensors, row, ".layernorm_before.bias") for row in rows],
        num_heads=[heads for _, heads in tables],
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _count(tensors: Mapping[str, Tensor], begins: str, ends: str) -> int:
    return sum(name.startswith(begins) and name.endswith(ends) for name in tensors)


def classes(net: Any, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W): the likeliest class of each pixel of pictures (N, H, W, 3)."""
    pixels = as_tensor(images, net)
    height, width = pixels.shape[-2:]
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    pixels = F.pad(standardised(pixels, MEAN, DEVIATION), padding)
    found = outputs(partial(_likeliest, net), pixels)
    numbers: NDArray[np.uint8] = found[:, :height, :width].byte().cpu().numpy()
    return numbers


def _likeliest(net: Any, pixels: Tensor) -> Tensor:
    """(N, H, W): the likeliest class at each place of (N, 3, H, W), normalised."""
    task = pixels.new_zeros(len(pixels), net.config.task_seq_len)
    task[:, : len(TASK)] = pixels.new_tensor(TASK)
    found = net(pixel_values=pixels, task_inputs=task)
    pairs = zip(
        found.transformer_decoder_class_predictions,
        found.transformer_decoder_mask_predictions,
        strict=True,
    )
    return torch.stack([semantic(*pair, pixels.shape[-2:]).argmax(0) for pair in pairs])


def semantic(kinds: Tensor, masks: Tensor, size: Sequence[int]) -> Tensor:
    """(classes, height, width): how likely each class is at each pixel.

    kinds: (queries, classes + 1), the last one for no object; masks: (queries, h, w). Both are
    logits. SHI-Labs/OneFormer `semantic_inference`: masks are enlarged first.
    """
    likely = kinds.softmax(dim=-1)[..., :-1]
    inside = F.interpolate(masks[None], (*size,), mode="bilinear")[0].sigmoid()
    return torch.einsum("qc,qhw->chw", likely, inside)
