"""The embedded model: Stable Diffusion 1.x in small, with two ControlNets, without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import load_controlnet, load_unet, read
from ..controlnet import ControlNet
from ..errors import CldmError
from .vae import TinyVAE

if TYPE_CHECKING:
    from ..pipeline import Pipeline

WEIGHTS = Path(__file__).parent / "weights"
EXAMPLE = Path(__file__).parent / "example.png"
EXAMPLE_PROMPT = "hut"
SIZE = 128
CONTROLS = ("canny", "mask")


def weights(name: str) -> Path:
    """The file of a part: "unet", "vae", "text" or one of CONTROLS; CldmError for other names."""
    if name in CONTROLS:
        return WEIGHTS / f"control_{name}.safetensors"
    if name in ("unet", "vae", "text"):
        return WEIGHTS / f"{name}.safetensors"
    raise CldmError(
        f"The embedded model has no part {name!r}: choose unet, vae, text, {', '.join(CONTROLS)}."
    )


def load_control(name: str) -> ControlNet:
    """An embedded ControlNet in fp32."""
    net: ControlNet = load_controlnet(weights(name), dtype=torch.float32)
    return net


def scale_factor() -> float:
    """What latents are multiplied with for the UNet (0.18215 in Stable Diffusion 1)."""
    return float(read(weights("vae")).metadata["scale_factor"])


def latent_rgb() -> tuple[list[list[float]], list[float]]:
    """A linear map from scaled latents to RGB in [-1, 1]: a row for each channel, and the bias."""
    *rows, bias = json.loads(read(weights("vae")).metadata["latent_rgb"])
    return rows, bias


def load_vae() -> TinyVAE:
    """The autoencoder in fp32; its latents are unscaled."""
    vae = TinyVAE()
    vae.load_state_dict({key: value.float() for key, value in read(weights("vae")).tensors.items()})
    return vae.eval().requires_grad_(False)


class ScaledVAE:
    """The autoencoder, in fp32, with latents scaled for the UNet, as Pipeline wants it."""

    def __init__(self, vae: TinyVAE, scale: float) -> None:
        self.vae, self.scale = vae, scale

    def encode(self, pixels: Tensor, /) -> Tensor:
        return self.vae.encode(pixels) * self.scale

    def decode(self, latents: Tensor, /) -> Tensor:
        return self.vae.decode(latents.float() / self.scale)


class TinyText:
    """Prompts to embeddings by the embedded text encoder."""

    def __init__(self) -> None:
        from .text import load_text_encoder, load_tokenizer

        self.tokenizer = load_tokenizer(WEIGHTS)
        self.model = load_text_encoder(read(weights("text")).tensors)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(B, 32, 128) for B prompts; what is longer than 32 tokens is cut."""
        from .text import tokenize

        embeddings: Tensor = self.model(tokenize(self.tokenizer, prompts)).last_hidden_state
        return embeddings


def load_pipeline(
    *, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> Pipeline:
    """The embedded model, ready to sample pictures of 128x128; dtype None is its UNet's file's."""
    from ..pipeline import Pipeline

    unet = load_unet(weights("unet"), dtype=dtype, device=device)
    return Pipeline(unet, ScaledVAE(load_vae().to(device), scale_factor()), TinyText())
