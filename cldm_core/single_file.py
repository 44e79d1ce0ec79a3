"""Whole Stable Diffusion 1.5 and 2.1 checkpoints: UNet, VAE and text encoder in one file.

Widths and depths are read from the file's keys; the key tables are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import load_unet, read
from .checkpoint.detect import count_of, shape_of
from .checkpoint.fit import require_fit, shapes
from .config import Prediction
from .errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint
from .pipeline import Pipeline

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

StateDict = Mapping[str, Tensor]

VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
OPEN_CLIP_PARTS = tuple(
    OPEN_CLIP_PREFIX + name
    for name in ("transformer.", "token_embedding.", "positional_embedding", "ln_final.")
)
TOKENIZER = "openai/clip-vit-large-patch14"
TOKENS = 77
HEAD_CHANNELS = 64
SCALE_FACTOR = 0.18215
# Parts of a published text encoder that the embeddings don't depend on.
TOLERATED = {"position_ids", "text_projection", "logit_scale"}


def load_pipeline(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    prediction: Prediction | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """A pipeline of a checkpoint in the original's layout (.safetensors, or .ckpt of tensors).

    `tokenizer` is a folder with CLIP's vocab.json and merges.txt; None takes them from the Hugging
    Face hub or its cache. `prediction` is "v" for SD 2.1 at 768 pixels, which keys don't tell; None
    takes the one of the file's own configuration, "eps" where it has none. The VAE and text encoder
    run in fp32. Raises UnsupportedCheckpoint where a part is missing, CheckpointMismatch where it
    is damaged and CldmError where there is no tokenizer.
    """
    checkpoint = read(path)
    with _named("UNet", checkpoint.name):
        unet = load_unet(checkpoint, device=device, dtype=dtype)
    with _named("autoencoder", checkpoint.name):
        vae = ScaledAutoencoder(load_vae(checkpoint.tensors).to(device))
    with _named("text encoder", checkpoint.name):
        encoder = load_text_encoder(checkpoint.tensors).to(device)
    text = TextEncoder(encoder, load_tokenizer(tokenizer))
    return Pipeline(unet, vae, text, prediction or unet.config.prediction)


@contextmanager
def _named(part: str, name: str) -> Iterator[None]:
    """Says in front of an error which part of which file it is about."""
    try:
        yield
    except CldmError as error:
        raise type(error)(f"The {part} of {name} can't be loaded: {error}") from error


class ScaledAutoencoder:
    """diffusers' autoencoder with Stable Diffusion's scale factor, as Pipeline wants it."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae

    def encode(self, pixels: Tensor, /) -> Tensor:
        """The mean of the latents' distribution, scaled."""
        mean: Tensor = self.vae.encode(pixels.float()).latent_dist.mode()
        return mean * SCALE_FACTOR

    def decode(self, latents: Tensor, /) -> Tensor:
        pixels: Tensor = self.vae.decode(latents.float() / SCALE_FACTOR).sample
        return pixels


class TextEncoder:
    """Prompts to embeddings (B, 77, width); what is longer than 77 tokens is cut."""

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        ids = batch.input_ids
        if self.model.config.pad_token_id == 0:
            # OpenCLIP, in Stable Diffusion 2, pads with 0 behind the first end token, CLIP with the
            # end token.
            ends = (ids == self.tokenizer.eos_token_id).cumsum(dim=1)
            ids = torch.where(ends.cumsum(dim=1) > 1, 0, ids)
        embeddings: Tensor = self.model(ids.to(self.model.device)).last_hidden_state
        return embeddings


def load_tokenizer(source: str | None) -> CLIPTokenizer:
    """CLIP's tokenizer from a folder or hub name; raises CldmError where there is none."""
    from transformers import CLIPTokenizer

    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(source or TOKENIZER)
    except (OSError, ValueError) as error:
        raise CldmError(
            f"CLIP's tokenizer could not be read from {source or TOKENIZER}: give the folder that "
            f"holds vocab.json and merges.txt (--tokenizer on the command line), or connect to "
            f"the internet once."
        ) from error
    return tokenizer


def load_vae(tensors: StateDict) -> AutoencoderKL:
    """The autoencoder under `first_stage_model.`, in fp32 and frozen."""
    with _readable("autoencoder"):
        vae, state = _vae(_part(tensors, VAE_PREFIX, "autoencoder"))
    require_fit(shapes(vae.state_dict()), state, "The checkpoint's autoencoder")
    vae.load_state_dict(state)
    frozen: AutoencoderKL = vae.float().eval().requires_grad_(False)
    return frozen


def _vae(state: StateDict) -> tuple[AutoencoderKL, StateDict]:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    down = VAE_PREFIX + "encoder.down."
    levels = count_of(state, down + "{}.block.0.conv1.weight")
    widths = [
        shape_of(state, f"{down}{level}.block.0.conv2.weight", 4)[0] for level in range(levels)
    ]
    config: dict[str, Any] = {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count_of(state, down + "0.block.{}.conv1.weight"),
        "latent_channels": shape_of(state, VAE_PREFIX + "post_quant_conv.weight", 4)[0],
    }
    vae = AutoencoderKL(**config)
    return vae, convert_ldm_vae_checkpoint(state, vae.config)


def load_text_encoder(tensors: StateDict) -> CLIPTextModel:
    """The text encoder, in fp32 and frozen.

    It is CLIP's in SD 1.x, and OpenCLIP's without its last block in SD 2.x.
    """
    is_clip = any(key.startswith(CLIP_PREFIX) for key in tensors)
    with _readable("text encoder"):
        model, state = _clip(tensors) if is_clip else _open_clip(tensors)
    # transformers 5 dropped the wrapper that gave the names their first part.
    wrapped = any(key.startswith("text_model.") for key in model.state_dict())
    names = {
        key if wrapped else key.removeprefix("text_model."): value.float()
        for key, value in state.items()
        if not _is_tolerated(key)
    }
    own = model.state_dict()
    expected = {key: shape for key, shape in shapes(own).items() if not _is_tolerated(key)}
    require_fit(expected, names, "The checkpoint's text encoder")
    model.load_state_dict({**own, **names})
    frozen: CLIPTextModel = model.eval().requires_grad_(False)
    return frozen


def _clip(tensors: StateDict) -> tuple[CLIPTextModel, StateDict]:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    state = convert_ldm_clip_checkpoint(_part(tensors, CLIP_PREFIX, "text encoder"))
    layers = count_of(state, "text_model.encoder.layers.{}.mlp.fc1.weight")
    vocabulary, width = shape_of(state, "text_model.embeddings.token_embedding.weight", 2)
    inner = shape_of(state, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
    return _new_text_model(
        vocabulary, width, inner, layers, "quick_gelu", pad=vocabulary - 1
    ), state


def _open_clip(tensors: StateDict) -> tuple[CLIPTextModel, StateDict]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    state = _part(tensors, OPEN_CLIP_PREFIX, "text encoder")
    blocks = OPEN_CLIP_PREFIX + "transformer.resblocks."
    last = count_of(state, blocks + "{}.mlp.c_fc.weight") - 1
    # Stable Diffusion 2 reads the layer before the last one.
    state = {key: value for key, value in state.items() if not key.startswith(f"{blocks}{last}.")}
    vocabulary, width = shape_of(state, OPEN_CLIP_PREFIX + "token_embedding.weight", 2)
    inner = shape_of(state, f"{blocks}0.mlp.c_fc.weight", 2)[0]
    model = _new_text_model(vocabulary, width, inner, last, "gelu", pad=0)
    converted = convert_open_clip_checkpoint(model, state, prefix=OPEN_CLIP_PREFIX)
    # The conversion drops what it doesn't know; it is kept so that it is refused by name.
    unknown = {key: value for key, value in state.items() if not key.startswith(OPEN_CLIP_PARTS)}
    return model, {**converted, **unknown}


def _new_text_model(
    vocabulary: int, width: int, inner: int, layers: int, activation: str, *, pad: int
) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // HEAD_CHANNELS),
            max_position_embeddings=TOKENS,
            hidden_act=activation,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=pad,
        )
    )


def _part(tensors: StateDict, prefix: str, what: str) -> dict[str, Tensor]:
    part = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    if not part:
        raise UnsupportedCheckpoint(
            f"The checkpoint has no {what} (no key starts with {prefix}): take a whole Stable "
            f"Diffusion 1.5 or 2.1 file."
        )
    return part


def _is_tolerated(key: str) -> bool:
    return not TOLERATED.isdisjoint(key.split("."))


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Makes a sentence of what diffusers and transformers say to weights that make no sense."""
    try:
        yield
    except CldmError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointMismatch(
            f"The checkpoint's {what} can't be built ({next(iter(str(e).splitlines()), e)}): its "
            f"weights are damaged or of another family, so take a whole Stable Diffusion 1.5 or "
            f"2.1 file."
        ) from e
