"""Whether a control net and a base model are of one family, told before anything is sampled."""

from __future__ import annotations

from typing import Any

from .config import UNetConfig
from .errors import FamilyMismatch
from .lllite import ControlLLLite, check_fits
from .t2i_adapter import T2IAdapter, require_adapter_fit

SAME_FAMILY = "use a control net of the same family (SD 1.5, SD 2.1, SDXL, ...) as the model."


def check_family(net: Any, unet: UNetConfig) -> None:
    """Raises FamilyMismatch, with what was found, where the net can't steer such a UNet.

    ControlNets are held against the width of the text (where they read it), the vector of sizes and
    pooled text, the channels and the count of blocks, and the latents' channels; T2I-Adapters
    against the channels of the levels, and ControlNet-LLLites against every projection that they
    change.
    """
    if isinstance(net, ControlLLLite):
        check_fits(net.config, unet)
    elif isinstance(net, T2IAdapter):
        require_adapter_fit(net.config, unet)
    elif hasattr(net, "unet_config"):  # a user's own wrapper of a net may have none
        _check_controlnet(net.unet_config, unet)


def _check_controlnet(net: UNetConfig, unet: UNetConfig) -> None:
    facts = {
        "text embeddings of width {}": (net.context_dim, unet.context_dim),
        "{} base channels": (net.model_channels, unet.model_channels),
        "a size and pooled-text vector of {}": (net.adm_in_channels, unet.adm_in_channels),
        "levels of {} times the base channels": (net.channel_mult, unet.channel_mult),
        "{} residual blocks a level": (net.num_res_blocks, unet.num_res_blocks),
        # An inpainting UNet reads a mask and a masked picture too, and its control net doesn't:
        # both get the noisy latents, which have as many channels as come out.
        "latents of {} channels": (net.in_channels, unet.out_channels),
    }
    for what, (expected, found) in facts.items():
        if expected is not None and expected != found:
            raise FamilyMismatch(
                f"This ControlNet was made for a base model with {what.format(_listed(expected))}, "
                f"and this model has {what.format(_listed(found))}: {SAME_FAMILY}"
            )


def _listed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "no width" if value is None else str(value)
