"""The base model of a run: its UNet to steer, what encodes pictures and prompts, what samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .. import tiny
from ..checkpoint import load_unet
from ..checkpoint.read import read_header
from ..config import SD21, UNetConfig, own_size
from ..errors import CldmError
from ..hints import HINT_SCALE
from ..pipeline import Pipeline
from ..predictions import file_prediction
from ..unet import ControlledUNet
from .config import TINY, TrainConfig
from .encoding import DiffusersEncoders, Encoders, TinyEncoders
from .frozen import HALF

if TYPE_CHECKING:
    from ..config import Prediction

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY_GUIDANCE, FULL_GUIDANCE = 3.0, 7.5


@dataclass(frozen=True)
class Base:
    """What a net is trained on: its UNet is to be steered; guidance: to sample with."""

    pipeline: Pipeline
    encoders: Encoders
    guidance: float


def load_base(config: TrainConfig, device: torch.device) -> Base:
    """The base that config names, its UNet in its `loaded_type`.

    Raises CldmError where there is none, a part of it is missing, or nothing says what it predicts.
    """
    dtype = loaded_type(config)
    prediction = unet_of(config).config.prediction
    if config.base == TINY:
        pipeline = tiny.load_pipeline(device=device, dtype=dtype)
        return Base(replace(pipeline, prediction=prediction), TinyEncoders(device), TINY_GUIDANCE)
    parts: Any = _full_pipeline(config, prediction, device, dtype)
    encoders = DiffusersEncoders(parts.autoencoder.vae, parts.encode_text.models)
    return Base(parts, encoders, FULL_GUIDANCE)


def _full_pipeline(
    config: TrainConfig, prediction: Prediction, device: torch.device, dtype: torch.dtype | None
) -> Pipeline:
    """That of a folder of diffusers, or of a single file."""
    path = Path(config.base)
    if path.is_dir():
        from .folders import load_folder

        return load_folder(path, prediction=prediction, device=device, dtype=dtype)
    from ..single_file import load_pipeline

    return load_pipeline(
        path, tokenizer=config.tokenizer, prediction=prediction, device=device, dtype=dtype
    )


def unet_of(config: TrainConfig) -> ControlledUNet:
    """The base's UNet without its numbers: of its file only the header is read.

    Its configuration has what config says that it predicts, else what the base says. Raises
    CldmError where nothing says it of a Stable Diffusion 2, as there are both kinds.
    """
    path = tiny.weights("unet") if config.base == TINY else Path(config.base)
    if path.is_dir():
        from .folders import folder_prediction, unet_file

        stated, header = folder_prediction(path), read_header(unet_file(path))
    else:
        header = read_header(path)
        stated = file_prediction(header)
    known = cast("Prediction | None", config.prediction) or stated
    unet = load_unet(header, prediction=known, device="meta", dtype=unet_type(config))
    if known is None and _of_both_kinds(unet.config):
        raise CldmError(
            f"{config.base} is a Stable Diffusion 2: some of these predict velocity and some "
            f"noise, and nothing in it says which. Set prediction to v for one of 768 pixels (2.0 "
            f"and 2.1), or to eps for one of 512 (2.0-base and 2.1-base)."
        )
    return unet


def _of_both_kinds(unet: UNetConfig) -> bool:
    return unet.context_dim == SD21.context_dim and unet.adm_in_channels is None


def unet_type(config: TrainConfig) -> torch.dtype:
    """The base's number type: half of it would lose small steps where it is trained itself."""
    return TYPES[config.precision] if config.sd_locked else torch.float32


def loaded_type(config: TrainConfig) -> torch.dtype | None:
    """What the base's UNet is read in; None where that is its own type.

    A new net starts from all its digits; only then `plan.make_net` brings it to its `unet_type`.
    """
    copied = config.init is None and config.kind != "lllite"
    return None if copied and unet_type(config) in HALF else unet_type(config)


def multiple_of(unet: UNetConfig) -> int:
    """What sides of pictures must be multiples of: 64 for SD 1.5, whose UNet halves thrice."""
    return int(HINT_SCALE * 2 ** (len(unet.channel_mult) - 1))


def resolution_of(config: TrainConfig, unet: UNetConfig) -> int:
    """The side that pictures are trained at; raises CldmError where the UNet can't take it."""
    multiple, side = multiple_of(unet), config.resolution
    if side is None:
        prediction = cast("Prediction | None", config.prediction)
        side = tiny.SIZE if config.base == TINY else own_size(unet, prediction)
    if side % multiple:
        raise CldmError(
            f"resolution is {side}, expected a multiple of {multiple} for this base model, such as "
            f"{max(1, round(side / multiple)) * multiple}."
        )
    return side
