"""UperNet on ConvNeXt (Xiao et al., 1807.10221; Liu et al., 2201.03545), as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import needed
from ..errors import Unavailable
from ..keeper import outputs
from .frames import as_tensor, standardised
from .pretrained import filled

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MULTIPLE = 32
UNUSED = ("auxiliary_head.",)
"""Only for training."""


def build(tensors: Mapping[str, Tensor]) -> nn.Module:
    """`UperNetForSemanticSegmentation` of the tensors' sizes."""
    transformers = needed("transformers")
    rows = [f"backbone.encoder.stages.{stage}.layers." for stage in range(4)]
    try:
        widths = [tensors[f"{row}0.dwconv.weight"].shape[0] for row in rows]
        classes, hidden = tensors["decode_head.classifier.weight"].shape[:2]
    except KeyError as error:
        raise Unavailable(
            f"The file of weights lacks {error.args[0]}: it isn't UperNet's on ConvNeXt."
        ) from None
    depths = [
        sum(n.startswith(row) and n.endswith(".dwconv.weight") for n in tensors) for row in rows
    ]
    backbone = transformers.ConvNextConfig(
        depths=depths,
        hidden_sizes=widths,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=classes,
        hidden_size=hidden,
        use_auxiliary_head=False,
    )
    return filled(transformers.UperNetForSemanticSegmentation, config, tensors, unused=UNUSED)


def classes(net: Any, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W): the likeliest class of each pixel of pictures (N, H, W, 3)."""
    pixels = as_tensor(images, net) / 255
    height, width = pixels.shape[-2:]
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    pixels = F.pad(standardised(pixels, MEAN, DEVIATION), padding, mode="replicate")
    found = outputs(lambda some: net(pixel_values=some).logits.argmax(1), pixels)
    numbers: NDArray[np.uint8] = found[:, :height, :width].byte().cpu().numpy()
    return numbers
