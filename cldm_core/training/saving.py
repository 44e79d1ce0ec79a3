"""A trained net as a file that load_control and hosts read, with what it was trained by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import save
from ..checkpoint.dtypes import NAMED_TYPES
from ..checkpoint.load import V_KEY
from ..checkpoint.write import HINT_KEY
from .config import TrainConfig
from .options import options_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import UNetConfig
    from .trainables import Trainable

TRAINING_KEY = "cldm_core.training"
_PRIVATE = ("out", "cache", "tokenizer")
"""Settings that say nothing about a net, only about the machine it was trained on."""
_FILES = ("data", "base", "init")


def save_net(
    trainable: Trainable, config: TrainConfig, path: Path, *, step: int, **facts: Any
) -> None:
    """Writes the net in config.save_dtype; the file is whole or absent.

    Its metadata has the net's configuration, the hint's name and, under cldm_core.training, the
    step, the settings and `facts`. Of paths only the last part is told. Raises OSError or CldmError
    where it can't be written.
    """
    metadata: dict[str, Any] = dict(trainable.metadata())
    if config.annotator:
        metadata[HINT_KEY] = config.annotator.rpartition(":")[2]
    metadata[TRAINING_KEY] = {"step": step, **_told(facts), "config": _settings(config)}
    save(_retyped(trainable.state_dict_to_save(), config.save_dtype), path, metadata)


def save_unet(trainable: Trainable, config: TrainConfig, path: Path) -> Path | None:
    """Writes the UNet beside the net, as NAME_unet, where its decoder is trained too."""
    state = trainable.unet_state_dict_to_save()
    if state is None:
        return None
    target = path.with_stem(f"{path.stem}_unet")
    state = _retyped(state, config.save_dtype)
    if _told_by_key(trainable.unet.config):
        state[V_KEY] = torch.zeros(0)
    save(state, target, trainable.unet_metadata())
    return target


def _told_by_key(unet: UNetConfig) -> bool:
    """Whether ComfyUI takes it from a key that this UNet predicts velocity.

    Of SDXL's it does (comfy/supported_models.py); of Stable Diffusion 2's it looks at a weight.
    """
    return unet.prediction == "v" and unet.adm_in_channels is not None


def _retyped(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    dtype: torch.dtype = NAMED_TYPES[name]
    return {
        key: value.detach().to(dtype) if value.is_floating_point() else value.detach()
        for key, value in state.items()
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that are not as they come, without the folders of this machine."""
    found: dict[str, Any] = {}
    for one in options_of(TrainConfig):
        value = getattr(config, one.name)
        if one.name in _PRIVATE or (value == one.default and one.name not in _FILES):
            continue
        found[one.name] = Path(value).name if one.name in _FILES and value else value
    return found


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
