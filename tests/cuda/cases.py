"""What the CUDA tests share: how far a GPU may be from the CPU, and nets with all weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from controlnet_pack.cldm_core import TINY

# Relative L2 distance of the prediction from that of the CPU in fp32. Rounding of one operation is
# 6e-8, 5e-4 and 4e-3; some fifty of them stand in a row.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
UNET = replace(
    TINY,
    num_res_blocks=(2, 2, 2),
    transformer_depth=(1,) * 6,
    transformer_depth_output=(1,) * 9,
)


def weighted(module: nn.Module, seed: int) -> Any:
    """The module with weights in every layer, the same in each test, frozen."""
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.1)
    return module.requires_grad_(False).eval()
