"""Whole Stable Diffusion 1.5, 2.1 and SDXL checkpoints: UNet, VAE and text encoders in one file.

Widths and depths are read from the file's keys; the key tables are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import load_unet, read
from .checkpoint.detect import count_of, shape_of, unet_config
from .checkpoint.dtypes import without_scales
from .checkpoint.fit import require_fit, shapes
from .checkpoint.load import stored_unet, unet_part
from .checkpoint.read import read_header
from .config import Prediction, UNetConfig, own_size
from .encoders import ScaledAutoencoder, TextEncoder, TextModel, in_words
from .errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint
from .pipeline import Pipeline
from .predictions import file_prediction

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

StateDict = Mapping[str, Tensor]

VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
OPEN_CLIP_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.")
PROJECTION = "text_projection"
TOKENIZER = "openai/clip-vit-large-patch14"
TOKENS = 77
HEAD_CHANNELS = 64
SCALE_FACTOR, SDXL_SCALE_FACTOR = 0.18215, 0.13025
# Parts of a published text encoder that the embeddings don't depend on; on the projection those of
# SDXL's second one do.
TOLERATED = {"position_ids", PROJECTION, "logit_scale"}


def load_pipeline(
    path: str | Path,
    *,
    tokenizer: str | None = None,
    prediction: Prediction | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Pipeline:
    """A pipeline of a checkpoint in the original's layout (.safetensors, or .ckpt of tensors).

    `tokenizer` is a folder with CLIP's vocab.json and merges.txt; None takes them from the Hugging
    Face hub or its cache. `prediction` is "v" for SD 2.1 at 768 pixels, which few files tell; None
    takes what the file says (predictions.py), "eps" where it says nothing. dtype: of the UNet, None
    the stored one; VAE and text encoders run in fp32. Raises UnsupportedCheckpoint where a part is
    missing, the noise schedule another or the UNet an inpainting model's, CheckpointMismatch where
    a part is damaged and CldmError where there is no tokenizer.
    """
    checkpoint = read(path)
    with _named("UNet", checkpoint.name):
        stated = file_prediction(checkpoint)
        unet = load_unet(checkpoint, prediction=prediction or stated, device=device, dtype=dtype)
        _require_plain(unet.config)
    sdxl = unet.config.adm_in_channels is not None
    with _named("autoencoder", checkpoint.name):
        vae = load_vae(checkpoint.tensors, SDXL_SCALE_FACTOR if sdxl else SCALE_FACTOR).to(device)
    with _named("text encoder", checkpoint.name):
        tensors = checkpoint.tensors
        encoders = load_sdxl_texts(tensors) if sdxl else [load_text_encoder(tensors)]
    shared = load_tokenizer(tokenizer)
    # OpenCLIP, in Stable Diffusion 2 and SDXL, pads with 0 behind the first end token, CLIP with
    # the end token.
    models = [TextModel(shared, one.to(device), one.config.pad_token_id) for one in encoders]
    return Pipeline(unet, ScaledAutoencoder(vae), TextEncoder(models), unet.config.prediction)


def _require_plain(config: UNetConfig) -> None:
    """Raises UnsupportedCheckpoint for a UNet that reads more than noisy latents."""
    if config.in_channels != config.out_channels:
        raise UnsupportedCheckpoint(
            f"It reads latents of {config.in_channels} channels, as inpainting and editing models "
            f"do, and only the {config.out_channels} noisy ones are sampled here: take the plain "
            f"model of the same family."
        )


def size_of(path: str | Path, prediction: Prediction | None = None) -> int:
    """Pixels along the side of the squares that a checkpoint was made for.

    Reads no numbers of a .safetensors file. Raises UnsupportedCheckpoint where there is no UNet.
    """
    checkpoint = read_header(path)
    with _named("UNet", checkpoint.name):
        state = without_scales(unet_part(checkpoint))
        config = stored_unet(checkpoint) or unet_config(state)
        return own_size(config, prediction or file_prediction(checkpoint))


@contextmanager
def _named(part: str, name: str) -> Iterator[None]:
    """Says in front of an error which part of which file it is about."""
    try:
        yield
    except CldmError as error:
        raise type(error)(f"The {part} of {name} can't be loaded: {error}") from error


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


def load_vae(tensors: StateDict, scale: float = SCALE_FACTOR) -> AutoencoderKL:
    """The autoencoder under `first_stage_model.`, in fp32 and frozen; scale: of its latents."""
    with _readable("autoencoder"):
        vae, state = _vae(_part(tensors, VAE_PREFIX, "autoencoder"), scale)
    require_fit(shapes(vae.state_dict()), state, "The checkpoint's autoencoder")
    vae.load_state_dict(state)
    frozen: AutoencoderKL = vae.float().eval().requires_grad_(False)
    return frozen


def _vae(state: StateDict, scale: float) -> tuple[AutoencoderKL, StateDict]:
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
        "scaling_factor": scale,
    }
    vae = AutoencoderKL(**config)
    return vae, convert_ldm_vae_checkpoint(state, vae.config)


def load_text_encoder(tensors: StateDict) -> Any:
    """The text encoder of SD 1.x and 2.x, in fp32 and frozen.

    It is CLIP's in SD 1.x, and OpenCLIP's without its last block in SD 2.x.
    """
    if any(key.startswith(CLIP_PREFIX) for key in tensors):
        return _text_encoder(tensors, CLIP_PREFIX, _clip)
    return _text_encoder(tensors, OPEN_CLIP_PREFIX, _open_clip_but_last)


def load_sdxl_texts(tensors: StateDict) -> list[Any]:
    """The two text encoders of SDXL, in fp32 and frozen.

    They are CLIP's, and all of OpenCLIP's with its projection.
    """
    return [
        _text_encoder(tensors, SDXL_CLIP_PREFIX, _clip),
        _text_encoder(tensors, SDXL_OPEN_CLIP_PREFIX, _open_clip_projected),
    ]


Build = Callable[[StateDict, str], tuple[Any, StateDict]]
"""From a part of a file and its prefix to an empty text encoder and what goes into it."""


def _text_encoder(tensors: StateDict, prefix: str, build: Build) -> Any:
    with _readable("text encoder"):
        model, state = build(_part(tensors, prefix, "text encoder"), prefix)
    own = model.state_dict()
    tolerated = TOLERATED - {PROJECTION} if f"{PROJECTION}.weight" in own else TOLERATED
    # transformers 5 dropped the wrapper that gave the names their first part.
    wrapped = any(key.startswith("text_model.") for key in own)
    names = {
        key if wrapped else key.removeprefix("text_model."): value.float()
        for key, value in state.items()
        if tolerated.isdisjoint(key.split("."))
    }
    wanted = shapes(own)
    expected = {key: wanted[key] for key in wanted if tolerated.isdisjoint(key.split("."))}
    require_fit(expected, names, "The checkpoint's text encoder")
    model.load_state_dict({**own, **names})
    return model.eval().requires_grad_(False)


def _clip(state: StateDict, prefix: str) -> tuple[Any, StateDict]:
    if not any(key.startswith(f"{prefix}text_model.") for key in state):
        # Merged models of 2022 leave the name of the first part out.
        state = {f"{prefix}text_model.{key.removeprefix(prefix)}": state[key] for key in state}
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    layers = count_of(state, "text_model.encoder.layers.{}.mlp.fc1.weight")
    vocabulary, width = shape_of(state, "text_model.embeddings.token_embedding.weight", 2)
    inner = shape_of(state, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
    return _new_text_model(
        vocabulary, width, inner, layers, "quick_gelu", pad=vocabulary - 1
    ), state


def _open_clip_but_last(state: StateDict, prefix: str) -> tuple[Any, StateDict]:
    """Stable Diffusion 2 reads the layer before the last one."""
    blocks = f"{prefix}transformer.resblocks."
    last = count_of(state, blocks + "{}.mlp.c_fc.weight") - 1
    kept = {key: value for key, value in state.items() if not key.startswith(f"{blocks}{last}.")}
    return _open_clip(kept, prefix, last)


def _open_clip_projected(state: StateDict, prefix: str) -> tuple[Any, StateDict]:
    layers = count_of(state, prefix + "transformer.resblocks.{}.mlp.c_fc.weight")
    return _open_clip(state, prefix, layers, shape_of(state, prefix + PROJECTION, 2)[1])


def _open_clip(
    state: StateDict, prefix: str, layers: int, projection: int | None = None
) -> tuple[Any, StateDict]:
    """projection: how many numbers the pooled embeddings are projected to; None: they aren't."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    vocabulary, width = shape_of(state, prefix + "token_embedding.weight", 2)
    inner = shape_of(state, f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
    model = _new_text_model(vocabulary, width, inner, layers, "gelu", pad=0, projection=projection)
    converted = convert_open_clip_checkpoint(model, dict(state), prefix=prefix)
    # The conversion drops what it doesn't know; it is kept so that it is refused by name.
    known = tuple(prefix + name for name in (*OPEN_CLIP_PARTS, PROJECTION))
    unknown = {key: value for key, value in state.items() if not key.startswith(known)}
    return model, {**converted, **unknown}


def _new_text_model(
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    activation: str,
    *,
    pad: int,
    projection: int | None = None,
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    return kind(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // HEAD_CHANNELS),
            max_position_embeddings=TOKENS,
            projection_dim=projection or width,
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
            f"Diffusion 1.5, 2.1 or SDXL file."
        )
    return part


def _readable(what: str) -> AbstractContextManager[None]:
    return in_words(
        CheckpointMismatch,
        lambda said: (
            f"The checkpoint's {what} can't be built ({said}): its weights are damaged "
            f"or of another family, so take a whole Stable Diffusion 1.5, 2.1 or SDXL file."
        ),
    )
