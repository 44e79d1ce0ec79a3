"""Files that need a base model, drawn by name: the same for the recording host and the tests."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from .parity_cases import CONTROL_SEED, SD15, SDXL, UNET_SEED, Case
from .seeded import seeded_state_dict, seeded_tensor

Shapes = Mapping[str, tuple[int, ...]]

RANK = 4
OWN = ("input_hint_block.", "zero_convs.", "middle_block_out.")
SD_LIKE = Case(
    "sd_like",
    {
        **SD15,
        "model_channels": 64,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "num_heads": -1,
        "num_head_channels": 64,
        "context_dim": 24,
    },
    timesteps=(500, 20),
)
SDXL_LIKE = Case(
    "sdxl_like",
    {
        **SDXL,
        "model_channels": 64,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "transformer_depth": [0, 1, 2],
        "context_dim": 40,
        "adm_in_channels": 24,
    },
    size=(4, 8),
    timesteps=(3,),
)
CASES = (SD_LIKE, SDXL_LIKE)


def base_weights(unet: Shapes) -> dict[str, Tensor]:
    """A base model's UNet."""
    return seeded_state_dict(unet, UNET_SEED)


def lora_file(control: Shapes, *, complete: bool = False) -> dict[str, Tensor]:
    """A Control-LoRA with all that such a file may have; `control`: shapes of the whole net.

    Unless it is complete, some biases and some whole layers that a base has are left out.
    """
    shapes = {}
    for index, (key, shape) in enumerate(sorted(control.items())):
        if key.startswith(OWN) or (key.endswith(".weight") and len(shape) == 1):
            shapes[key] = shape
        elif complete or index % (3 if key.endswith(".bias") else 7):
            shapes |= {key: shape} if key.endswith(".bias") else _ranked(key, shape)
    return {"lora_controlnet": torch.zeros(0), **seeded_state_dict(shapes, CONTROL_SEED)}


def _ranked(key: str, shape: tuple[int, ...]) -> Shapes:
    path, rest = key.removesuffix(".weight"), (1,) * (len(shape) - 2)
    return {f"{path}.up": (shape[0], RANK, *rest), f"{path}.down": (RANK, *shape[1:])}


def difference_file(
    control: Shapes, dtype: torch.dtype = torch.float32, *, complete: bool = False
) -> dict[str, Tensor]:
    """A difference file; unless it is complete, every fifth weight that a base has is left out."""
    file = {"difference": torch.ones(())}
    for index, (key, shape) in enumerate(sorted(control.items())):
        if key.startswith(OWN):
            file[f"control_model.{key}"] = _whole(key, shape).to(dtype)
        elif complete or index % 5:
            small = seeded_tensor(shape, key, CONTROL_SEED) * (0.3 / prod(shape[1:]) ** 0.5)
            file[f"control_model.{key}"] = small.to(dtype)
    return file


def _whole(key: str, shape: tuple[int, ...]) -> Tensor:
    return seeded_state_dict({key: shape}, CONTROL_SEED)[key]
