"""What makes latents of pictures and embeddings of prompts; handed to the training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders import ScaledAutoencoder, TextEncoder, TextModel, sdxl_vector
from .pairs import Size

SAMPLED = 64
"""How many numbers of each weight tell one model from another."""
PROBES = ("", "A hut, 2 cats")
"""Prompts whose tokens tell how a tokenizer begins, ends, pads and cuts."""


@dataclass(frozen=True)
class SizeCondition:
    """What SDXL is told about a picture, in pixels: (height, width) and (top, left).

    original: its size as stored; corner: of the crop, in the picture as scaled for training;
    target: the size trained at. (Podell et al. 2023, section 2.2)
    """

    original: Size
    corner: tuple[int, int]
    target: Size

    @property
    def numbers(self) -> tuple[int, ...]:
        """The six in SDXL's order."""
        return (*self.original, *self.corner, *self.target)


class Encoders(Protocol):
    """Pictures to latents and prompts to embeddings, by frozen models.

    key: names the models with their weights and types: what is cached under it stays valid.
    sized: whether the embeddings depend on the sizes, as SDXL's do.
    """

    @property
    def key(self) -> str: ...

    @property
    def sized(self) -> bool: ...

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] to (B, 4, h, w), scaled for the UNet."""

    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        """Context (B, tokens, width), and SDXL's vector y (B, A) or None."""


class TinyEncoders:
    """The embedded model's autoencoder and text encoder."""

    sized = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from ..tiny import ScaledVAE, TinyText, load_vae, scale_factor

        self.device = torch.device(device)
        vae, self._text = load_vae().to(self.device), TinyText()
        self._vae = ScaledVAE(vae, scale_factor())
        self.key = f"tiny-{fingerprint(vae)}-{fingerprint(self._text.model)}-{scale_factor()}"

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        return self._vae.encode(pictures.to(self.device))

    @torch.no_grad()
    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        return self._text(prompts), None


class DiffusersEncoders:
    """Models of diffusers and transformers: AutoencoderKL, and one CLIP or SDXL's two.

    What they make is said at ScaledAutoencoder and TextEncoder; SDXL's y also tells the sizes of
    each picture. The models stay on their devices and in their types; they are not changed. key:
    None takes it from weights, scale and tokenizers.
    """

    def __init__(self, vae: Any, texts: Sequence[TextModel], *, key: str | None = None) -> None:
        self._autoencoder, self._text = ScaledAutoencoder(vae), TextEncoder(texts)
        scaled = f"{fingerprint(vae)}-{self._autoencoder.scale}-{self._autoencoder.shift}"
        read = (f"{fingerprint(text.encoder)}-{_tokens_key(text)}" for text in texts)
        self.key = key or "-".join(("diffusers", scaled, *read))

    @property
    def sized(self) -> bool:
        return self._text.sized

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        return self._autoencoder.encode(pictures)

    @torch.no_grad()
    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        context, pooled = self._text.read(prompts)
        if pooled is None:
            return context, None
        return context, sdxl_vector(pooled, [size.numbers for size in sizes])


def _tokens_key(text: TextModel) -> str:
    """A digest of what becomes of prompts before the text encoder reads them."""
    told = [sorted(text.tokenizer.get_vocab().items()), text.ids(PROBES).tolist()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def fingerprint(module: nn.Module) -> str:
    """A digest of a model: names, shapes and types of its weights, and a sample of their numbers.

    Fine-tuning changes weights everywhere, so a sample of each tensor tells; and reading all of
    them would take seconds.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        flat = value.detach().reshape(-1)
        chosen = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
        digest.update(chosen.double().cpu().numpy().astype(np.float64).tobytes())
    return digest.hexdigest()[:16]
