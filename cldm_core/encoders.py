"""Stable Diffusion's autoencoder and text encoders, as diffusers and transformers have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import timestep_embedding
from .errors import CldmError

SIZE_DIM = 256
"""How many numbers SDXL makes of each of its six sizes."""
TROUBLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What diffusers and transformers raise where weights don't make sense to them."""


class ScaledAutoencoder:
    """An autoencoder of diffusers, with latents scaled as its configuration says.

    latents = (vae_latents - shift) * scale. It stays on its device and in its type: fp32, as SDXL's
    overflows in fp16.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.scale: float = vae.config["scaling_factor"]
        self.shift: float = vae.config.get("shift_factor") or 0.0

    def encode(self, pixels: Tensor, /) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] to (B, 4, h, w), fp32, scaled for the UNet.

        The mean of the latent distribution, so that it can be cached.
        """
        found = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype))
        # AutoencoderTiny gives latents, AutoencoderKL a distribution.
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        scaled: Tensor = (latents - self.shift).float() * self.scale
        return scaled

    def decode(self, latents: Tensor, /) -> Tensor:
        """(B, 4, h, w), scaled, to (B, 3, 8h, 8w) in [-1, 1].

        One after the other: a decoder takes more memory for a picture than a UNet.
        """
        unscaled = latents.to(self.vae.dtype) / self.scale + self.shift
        return torch.cat([self.vae.decode(one).sample for one in unscaled.split(1)])


@dataclass(frozen=True)
class TextModel:
    """A tokenizer and a text encoder of transformers that belong together.

    pad: the token behind a prompt's end; None leaves the tokenizer's own.
    """

    tokenizer: Any
    encoder: Any
    pad: int | None = None

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Tokens (B, length), cut or padded to what both take, on the encoder's device."""
        positions = self.encoder.config.max_position_embeddings
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=min(self.tokenizer.model_max_length, positions),
            return_tensors="pt",
        )
        ids: Tensor = batch.input_ids
        if self.pad is not None:
            ends = (ids == self.tokenizer.eos_token_id).cumsum(dim=1)
            ids = torch.where(ends.cumsum(dim=1) > 1, self.pad, ids)
        return ids.to(self.encoder.device)


class TextEncoder:
    """Prompts to what the UNet reads, by one text model or by SDXL's two.

    One gives its last hidden state (Stable Diffusion 1 and 2). Two give their last hidden states
    but one, without a norm behind them, side by side; and the second's projection, which is pooled
    at the end token, is a part of the vector y (Podell et al. 2023, section 2.1).

    Raises CldmError for other numbers of models.
    """

    def __init__(self, models: Sequence[TextModel]) -> None:
        if len(models) not in (1, 2):
            raise CldmError(
                f"{len(models)} text models were given: one for Stable Diffusion 1 or 2, two for "
                "SDXL."
            )
        self.models = tuple(models)

    @property
    def sized(self) -> bool:
        """Whether there is a vector, which sizes are a part of."""
        return len(self.models) == 2

    def __call__(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Any:
        """Embeddings (B, tokens, width); of SDXL with the vectors of uncut pictures of this size.

        size: (height, width) in pixels.
        """
        context, pooled = self.read(prompts)
        if pooled is None:
            return context
        height, width = size or (0, 0)
        return context, sdxl_vector(pooled, [(height, width, 0, 0, height, width)] * len(prompts))

    def read(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings (B, tokens, width) and, of SDXL, pooled ones (B, width), in fp32."""
        if not self.sized:
            (model,) = self.models
            return model.encoder(model.ids(prompts)).last_hidden_state.float(), None
        states = [
            model.encoder(model.ids(prompts), output_hidden_states=True) for model in self.models
        ]
        context = torch.cat([state.hidden_states[-2].float() for state in states], dim=-1)
        return context, states[1].text_embeds.float()


def sdxl_vector(pooled: Tensor, sizes: Sequence[tuple[int, ...]]) -> Tensor:
    """SDXL's y (B, width + 6 * 256) from pooled embeddings (B, width) and six numbers for each.

    They are, in pixels, height and width of the original, top and left of the crop, and height and
    width of the picture.
    """
    numbers = torch.tensor(sizes, device=pooled.device)
    embedded = timestep_embedding(numbers.flatten(), SIZE_DIM).reshape(len(sizes), -1)
    return torch.cat([pooled, embedded.to(pooled)], dim=-1)


@contextmanager
def in_words(kind: type[CldmError], sentence: Callable[[str], str]) -> Iterator[None]:
    """Makes an error of this kind of what those libraries say to weights that make no sense.

    sentence: is given the first line of what they say.
    """
    try:
        yield
    except CldmError:
        raise
    except TROUBLE as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise kind(sentence(said)) from error
