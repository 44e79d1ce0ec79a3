"""The trained nets as files in half precision, with everything a loader needs in their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import config_metadata, save
from ..config import TINY, ControlNetConfig
from ..controlnet import ControlNet
from .cache import Cache
from .data import Emoji, render
from .stage_unet import TextToLatents
from .text import public_names
from .vae import TinyVAE

LICENCE = "GPL-3.0-or-later; trained on Fluent Emoji 3D, (c) Microsoft Corporation, MIT licence"


def half(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors in fp16."""
    return {key: value.to(torch.float16) for key, value in module.state_dict().items()}


def latent_rgb(vae: TinyVAE, pictures: list[Emoji], scale: float) -> list[list[float]]:
    """Least squares from scaled latents to RGB in [-1, 1]: a row for each channel, then the bias.

    It is what a host shows while it samples.
    """
    device = next(vae.parameters()).device
    pictures_on_white = np.stack([render(emoji)[0] for emoji in pictures])
    pixels = torch.from_numpy(pictures_on_white).to(device).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels) * scale  # (N, 4, 16, 16)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    colours = nn.functional.avg_pool2d(pixels, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    design = torch.cat([rows, torch.ones(len(rows), 1, device=device)], dim=1)
    solution: list[list[float]] = torch.linalg.lstsq(design, colours).solution.tolist()
    return solution


def export(
    folder: Path,
    vae: TinyVAE,
    nets: TextToLatents,
    controls: Mapping[str, ControlNet],
    cache: Cache,
    pictures: list[Emoji],
) -> None:
    """Writes vae, unet, text and control_NAME .safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"licence": LICENCE}
    scaling = {
        "scale_factor": cache.scale,
        "latent_rgb": latent_rgb(vae, pictures[:256], cache.scale),
    }
    save(half(vae), folder / "vae.safetensors", {**common, **scaling})
    save(half(nets.unet), folder / "unet.safetensors", {**common, **config_metadata(TINY)})
    text = {key: value.to(torch.float16) for key, value in public_names(nets.text).items()}
    save(text, folder / "text.safetensors", common)
    for name, net in controls.items():
        target = folder / f"control_{name}.safetensors"
        save(half(net), target, {**common, **config_metadata(ControlNetConfig(TINY)), "hint": name})
