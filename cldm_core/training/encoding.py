"""What makes latents of pictures and embeddings of prompts; handed to the training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks import timestep_embedding
from ..errors import CldmError
from .pairs import Size

SIZE_DIM = 256
"""How many numbers SDXL makes of each of the six of a SizeCondition."""
SAMPLED = 64
"""How many numbers of each weight tell one model from another."""


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


@dataclass(frozen=True)
class TextModel:
    """A tokenizer and a text encoder of transformers that belong together."""

    tokenizer: Any
    encoder: Any

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Tokens (B, model_max_length), cut or padded, on the encoder's device."""
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        ids: Tensor = batch.input_ids
        return ids.to(self.encoder.device)


class DiffusersEncoders:
    """Models of diffusers and transformers: AutoencoderKL, and one CLIP or SDXL's two.

    With one text model the context is its last hidden state (Stable Diffusion 1 and 2). With two
    it is the last hidden states but one, side by side, and y is the second's pooled embedding with
    the sizes' sinusoidal embeddings (SDXL: CLIPTextModel, then CLIPTextModelWithProjection).
    Latents are the mean of the autoencoder's distribution, so that they can be kept.

    The models stay on their devices and in their types; they are not changed. key: None takes it
    from the weights.
    """

    def __init__(self, vae: Any, texts: Sequence[TextModel], *, key: str | None = None) -> None:
        if len(texts) not in (1, 2):
            raise CldmError(
                f"{len(texts)} text models were given: one for Stable Diffusion 1 or 2, two for "
                "SDXL."
            )
        self.vae, self.models = vae, tuple(texts)
        nets = [vae, *(text.encoder for text in texts)]
        self.key = key or "diffusers-" + "-".join(fingerprint(net) for net in nets)

    @property
    def sized(self) -> bool:
        return len(self.models) == 2

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        found = self.vae.encode(pictures.to(self.vae.device, self.vae.dtype))
        # AutoencoderTiny gives latents, AutoencoderKL a distribution.
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        shift = self.vae.config.get("shift_factor") or 0.0
        scaled: Tensor = (latents - shift).float() * self.vae.config["scaling_factor"]
        return scaled

    @torch.no_grad()
    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        if not self.sized:
            (model,) = self.models
            return model.encoder(model.ids(prompts)).last_hidden_state.float(), None
        states = [
            model.encoder(model.ids(prompts), output_hidden_states=True) for model in self.models
        ]
        context = torch.cat([state.hidden_states[-2].float() for state in states], dim=-1)
        return context, sdxl_vector(states[1].text_embeds.float(), sizes)


def sdxl_vector(pooled: Tensor, sizes: Sequence[SizeCondition]) -> Tensor:
    """SDXL's y (B, width + 6 * 256) from pooled embeddings (B, width) and a size for each."""
    numbers = torch.tensor([size.numbers for size in sizes], device=pooled.device)
    embedded = timestep_embedding(numbers.flatten(), SIZE_DIM).reshape(len(sizes), -1)
    return torch.cat([pooled, embedded.to(pooled)], dim=-1)


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
