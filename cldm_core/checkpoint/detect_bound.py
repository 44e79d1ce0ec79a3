"""Configurations of nets that store only what differs from a base model, read from their keys."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..bound import Base, base_prefix, product_shape
from ..config import ControlNetConfig, UNetConfig
from ..control_lora import OWN_PARTS
from ..errors import CheckpointMismatch, CldmError
from .detect import controlnet_config, shape_of, unet_config
from .read import StateDict


def control_lora_config(state: StateDict, base: Base | None = None) -> ControlNetConfig:
    """The configuration of a Control-LoRA's canonical tensors.

    As in ComfyUI the encoder is the base's, where a mapping of its weights is given and the file
    fits it; else it is read from the file. Raises CheckpointMismatch where the file alone doesn't
    tell.
    """
    return _config(effective(state), base)


def difference_config(state: StateDict, base: Base | None = None) -> ControlNetConfig:
    """The configuration of a difference file's canonical tensors; see control_lora_config."""
    return _config(dict(state), base)


def effective(state: StateDict) -> dict[str, Tensor]:
    """The tensors with each pair of `up` and `down` replaced by their product, without numbers."""
    whole = {k: v for k, v in state.items() if not k.endswith((".up", ".down"))}
    for key in state:
        path, _, name = key.rpartition(".")
        if name == "up" and f"{path}.down" in state:
            shape = product_shape(path, state[key], state[f"{path}.down"])
            whole[f"{path}.weight"] = torch.empty(shape, device="meta")
    return whole


def _config(state: dict[str, Tensor], base: Base | None) -> ControlNetConfig:
    hint_channels = shape_of(state, "input_hint_block.0.weight", 4)[1]
    unet = None if base is None else _fitting(state, base)
    if unet is not None:
        return ControlNetConfig(unet, hint_channels)
    try:
        return controlnet_config(state)
    except CldmError as error:
        raise CheckpointMismatch(
            "The file leaves out so much of what its base model has that its configuration can't "
            f"be told: give the weights of the base model (base=) or the configuration (config=). "
            f"({error})"
        ) from error


def _fitting(state: StateDict, base: Base) -> UNetConfig | None:
    """The base's configuration, None where it can't be told or the file is for another family."""
    if not isinstance(base, Mapping):
        return None
    prefix = base_prefix(base)
    twins = {key: base.get(prefix + key) for key in state if not key.startswith(OWN_PARTS)}
    for key, twin in twins.items():
        if twin is None or twin.shape[:1] != state[key].shape[:1]:
            return None
        if twin.numel() != state[key].numel():
            return None
    # One by one: a mapping may compute its values.
    return unet_config(
        {key.removeprefix(prefix): _blank(base[key]) for key in base if key.startswith(prefix)}
    )


def _blank(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, device="meta")
