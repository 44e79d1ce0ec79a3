"""A base model in the folders of diffusers: Stable Diffusion 1.5, 2.1 and SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_unet
from ..config import Prediction
from ..errors import CldmError
from ..pipeline import Pipeline
from .encoding import DiffusersEncoders, SizeCondition, TextModel

UNET_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
TEXT_FOLDERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


class Autoencoder:
    """diffusers' autoencoder, with latents scaled as its configuration says."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def decode(self, latents: Tensor, /) -> Tensor:
        """(B, 4, h, w) to (B, 3, 8h, 8w) in [-1, 1]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        pixels: Tensor = self.vae.decode(scaled).sample
        return pixels


class Texts:
    """What DiffusersEncoders make of prompts, as a pipeline asks for it; `sized` for SDXL."""

    def __init__(self, encoders: DiffusersEncoders) -> None:
        self.encoders, self.sized = encoders, encoders.sized

    def __call__(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Any:
        """Embeddings (B, tokens, width), with SDXL's vectors where there is a size."""
        told = SizeCondition(size or (0, 0), (0, 0), size or (0, 0))
        context, y = self.encoders.texts(prompts, [told] * len(prompts))
        return (context, y) if self.sized else context


def unet_file(folder: Path) -> Path:
    """The file of the UNet in a folder of diffusers; raises CldmError where there is none."""
    found = next((folder / "unet" / name for name in UNET_FILES if _is(folder, name)), None)
    if found is None:
        raise CldmError(
            f"{folder} holds no base model: expected a folder of diffusers, with unet/"
            f"{UNET_FILES[0]}, vae, tokenizer and text_encoder in it (for SDXL also tokenizer_2 "
            f"and text_encoder_2)."
        )
    return found


def load_folder(
    folder: Path,
    *,
    prediction: Prediction | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Pipeline, DiffusersEncoders]:
    """A pipeline and what encodes for it; VAE and text encoders in fp32.

    Raises CldmError where a part is missing or can't be read.
    """
    unet = load_unet(unet_file(folder), device=device, dtype=dtype)
    with _told(folder):
        vae, models = _vae(folder, device), _texts(folder, device)
    encoders = DiffusersEncoders(vae, models)
    if encoders.sized != (unet.config.adm_in_channels is not None):
        wanted = "two text encoders" if unet.config.adm_in_channels else "one text encoder"
        raise CldmError(
            f"{folder} holds {len(models)}, and its UNet needs {wanted}: take the whole folder of "
            f"one model."
        )
    pipeline = Pipeline(unet, Autoencoder(vae), Texts(encoders), prediction)
    return pipeline, encoders


def _is(folder: Path, name: str) -> bool:
    return (folder / "unet" / name).is_file()


def _vae(folder: Path, device: torch.device) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    return vae.to(device, torch.float32).eval().requires_grad_(False)


def _texts(folder: Path, device: torch.device) -> list[TextModel]:
    """The text encoder; of SDXL both, the second with its projection."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    classes = (CLIPTextModel, CLIPTextModelWithProjection)
    found: list[TextModel] = []
    for (tokenizer, encoder), kind in zip(TEXT_FOLDERS, classes, strict=True):
        if not (folder / encoder).is_dir() and found:
            break
        model: Any = kind.from_pretrained(folder / encoder, local_files_only=True)
        found.append(
            TextModel(
                CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True),
                model.to(device, torch.float32).eval().requires_grad_(False),
            )
        )
    return found


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Makes a sentence of what diffusers and transformers say to folders that hold no model."""
    try:
        yield
    except CldmError:
        raise
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CldmError(
            f"{folder} can't be read as a base model "
            f"({next(iter(str(error).splitlines()), type(error).__name__)}): expected a folder of "
            f"diffusers with unet, vae, tokenizer and text_encoder in it."
        ) from error
