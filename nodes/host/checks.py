"""What is checked when a control is applied, before the host samples."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...cldm_core import CldmError, FamilyMismatch
from ...cldm_core.config import UNetConfig
from ...cldm_core.matching import SAME_FAMILY, check_family

_FIELDS = frozenset(field.name for field in dataclasses.fields(UNetConfig))


def unet_config_of(model: Any) -> UNetConfig:
    """The configuration of a base model of the host; raises FamilyMismatch where it is no UNet."""
    base = model.model_config.unet_config
    if "model_channels" not in base or base.get("use_temporal_attention"):
        raise _no_unet(model)
    fields = {key: value for key, value in base.items() if key in _FIELDS and value is not None}
    if fields.get("num_head_channels", -1) != -1:
        fields["num_heads"] = -1
    # The host lists the decoder's depths from the last block to the first.
    depths = fields.get("transformer_depth_output", ())
    fields["transformer_depth_output"] = tuple(reversed(depths))
    try:
        return UNetConfig.from_dict({"context_dim": None, **fields})
    except CldmError as error:
        raise _no_unet(model) from error


def _no_unet(model: Any) -> FamilyMismatch:
    return FamilyMismatch(
        f"This model ({type(model).__name__}) is no picture UNet of the Stable Diffusion family, "
        f"and this ControlNet was made for one: {SAME_FAMILY}"
    )


def check_model(net: Any, model: Any) -> None:
    """Raises FamilyMismatch, with what was found, where the net can't steer this base model."""
    check_family(net, unet_config_of(model))


def check_conditioning(net: Any, conditioning: list[Any]) -> None:
    """Raises FamilyMismatch where the prompts were encoded for another family than the net's."""
    # Adapters and LLLites read no text.
    config = getattr(net, "unet_config", None)
    expected = None if config is None else config.context_dim
    for text, options in conditioning:
        # What the host's own node for separate ControlNet prompts leaves there.
        width = options.get("cross_attn_controlnet", text).shape[-1]
        if expected not in (None, width):
            raise FamilyMismatch(
                f"This ControlNet reads text embeddings {expected} wide, and this prompt's are "
                f"{width} wide: {SAME_FAMILY}"
            )
