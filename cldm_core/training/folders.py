"""A base model in the folders of diffusers: Stable Diffusion 1.5, 2.1 and SDXL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_unet
from ..checkpoint.read import read_header
from ..config import Prediction
from ..encoders import ScaledAutoencoder, TextEncoder, TextModel, in_words
from ..errors import CldmError
from ..pipeline import Pipeline
from ..predictions import file_prediction, scheduler_prediction

UNET_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
TEXT_FOLDERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))


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


def folder_prediction(folder: Path) -> Prediction | None:
    """What the folder's scheduler or its UNet's file says; None where they say nothing.

    Raises CldmError where there is no UNet, or the noise schedule isn't Stable Diffusion's.
    """
    unet = unet_file(folder)
    stated = scheduler_prediction(folder / "scheduler" / "scheduler_config.json")
    return stated or file_prediction(read_header(unet))


def load_folder(
    folder: Path,
    *,
    prediction: Prediction | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Pipeline:
    """A pipeline of a folder; VAE and text encoders in fp32.

    prediction: None takes the one of the UNet's configuration; dtype: of the UNet, None the stored
    one. Raises CldmError where a part is missing or can't be read.
    """
    unet = load_unet(unet_file(folder), prediction=prediction, device=device, dtype=dtype)
    with in_words(
        CldmError,
        lambda said: (
            f"{folder} can't be read as a base model ({said}): expected a folder of "
            f"diffusers with unet, vae, tokenizer and text_encoder in it."
        ),
    ):
        autoencoder = ScaledAutoencoder(_vae(folder, device))
        text = TextEncoder(_texts(folder, device))
    if text.sized != (unet.config.adm_in_channels is not None):
        wanted = "two text encoders" if unet.config.adm_in_channels else "one text encoder"
        raise CldmError(
            f"{folder} holds {len(text.models)}, and its UNet needs {wanted}: take the whole "
            f"folder of one model."
        )
    return Pipeline(unet, autoencoder, text, unet.config.prediction)


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
