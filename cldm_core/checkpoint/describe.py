"""Configurations in words: the base models they belong to, and what only some nets have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import SD15, SD21, SDXL, TINY, ControlNetConfig, UNetConfig
from ..lllite import LLLiteConfig
from ..t2i_adapter import AdapterConfig
from ..union import UnionConfig, control_type_names

LATENTS = 4
_DEPTHS: dict[tuple[int, ...], str] = {
    (0, 0, 2, 2, 10, 10): "SDXL",
    (0, 0, 0, 0, 1, 1): "SDXL mid",
    (0, 0, 0, 0, 0, 0): "SDXL small",
    (0, 0, 2, 2, 4, 4): "SSD-1B",
}


def base_name(config: Any) -> str:
    """The public name of the base models that a net of this configuration is for."""
    match config:
        case UNetConfig():
            return _unet_name(config)
        case ControlNetConfig():
            return _unet_name(config.unet)
        case UnionConfig():
            return _unet_name(config.controlnet.unet)
        case AdapterConfig():
            return "SDXL" if config.kind == "xl" else "SD 1.x or 2.x"
        case LLLiteConfig():
            # The first level of SDXL has no transformers.
            first = any(part.path.startswith("input_blocks.1.") for part in config.modules)
            return "SD 1.x or 2.x" if first else "SDXL"
    raise TypeError(f"{type(config).__name__} is no configuration of a net")


def hint_channels(config: Any) -> int:
    """How many channels the hint has."""
    found: int = (config.controlnet if isinstance(config, UnionConfig) else config).hint_channels
    return found


def control_types(config: Any) -> tuple[str, ...]:
    """The types that a union net knows, as numbers where they have no names; else nothing."""
    if not isinstance(config, UnionConfig):
        return ()
    numbers = tuple(map(str, range(config.control_types)))
    return control_type_names(config.control_types) or numbers


def pooling(config: Any, *, stored: bool) -> str:
    """Whether residuals are averaged over the picture: "yes", "no", or "unknown".

    Keys don't tell it of a ControlNet, so it is known where a configuration was `stored`.
    """
    if not isinstance(config, ControlNetConfig):
        return "no"
    if not stored:
        return "unknown"
    return "yes" if config.global_average_pooling else "no"


def unet_of(config: Any) -> UNetConfig | None:
    """The UNet that a configuration describes, or the base of; None for nets beside a UNet."""
    inner = config.controlnet if isinstance(config, UnionConfig) else config
    unet = inner.unet if isinstance(inner, ControlNetConfig) else inner
    return unet if isinstance(unet, UNetConfig) else None


def only_stored(config: Any, *, stored: bool) -> dict[str, Any]:
    """What of a UNet's configuration keys don't tell: "unknown" unless it was `stored`.

    prediction: what the base predicts, "eps" or "v"; heads: how many each attention has or how wide
    they are. Nothing for nets that have neither.
    """
    unet = unet_of(config)
    if unet is None:
        return {}
    if not stored:
        return {"prediction": "unknown", "heads": "unknown"}
    # A control net's is written as the default where nothing told it.
    told = unet is config or unet.prediction != "eps"
    counted = unet.num_heads != -1
    heads = f"{unet.num_heads} each" if counted else f"{unet.num_head_channels} channels wide"
    return {"prediction": unet.prediction if told else "unknown", "heads": heads}


def latents(config: Any) -> str:
    """A sentence about latents of other than 4 channels, such as inpainting models read."""
    unet = unet_of(config)
    if unet is None or unet.in_channels == LATENTS:
        return ""
    return f"It reads latents of {unet.in_channels} channels instead of {LATENTS}."


def _unet_name(config: UNetConfig) -> str:
    if config.adm_in_channels == SDXL.adm_in_channels and config.model_channels == 320:
        return _DEPTHS.get(config.transformer_depth, "SDXL of unusual depth")
    known = (("SD 1.5", SD15), ("SD 2.1", SD21), ("embedded model", TINY))
    for name, base in known:
        if _encoder(config) == _encoder(base):
            return name
    return f"unknown family ({config.model_channels} base channels, text {config.context_dim} wide)"


def _encoder(config: UNetConfig) -> UNetConfig:
    """The configuration without what a ControlNet and its base may differ in."""
    return replace(
        config,
        in_channels=4,
        out_channels=4,
        use_linear_in_transformer=False,
        adm_in_channels=None,
        prediction="eps",
    )
