"""State dicts to files that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..config import UNetConfig
from ..errors import CldmError
from ..whole_files import whole_file
from .families import FAMILIES
from .read import Checkpoint, metadata_record

CONFIG_KEY = "cldm_core.config"
HINT_KEY = "cldm_core.hint"
FOREIGN_HINT_KEY = "hint"
"""Where other tools, and this pack's embedded nets, note what the hint must be like."""
_POOLING = "global_average_pooling"
POOLED_NAMES = ("_shuffle", "_shuffle_fp16")
"""Ends of the names of nets whose residuals are averaged, as ComfyUI takes them."""


def config_metadata(config: Any, *, pooling_known: bool = True) -> dict[str, str]:
    """A file's metadata that carries the configuration, so that nothing must be guessed.

    config: a UNetConfig or that of any family of control nets. pooling_known: whether it is known
    that a ControlNet's residuals are averaged or not; else the record leaves it out, and
    `stored_pooling` gives None.
    """
    kinds = {family.config: family.kind for family in FAMILIES.values()} | {UNetConfig: "unet"}
    record = {"family": kinds[type(config)], **config.to_dict()}
    if not pooling_known:
        record.pop(_POOLING, None)
    return {CONFIG_KEY: json.dumps(record)}


def stored_pooling(checkpoint: Checkpoint) -> bool | None:
    """Whether the file says that residuals are averaged over the picture; None: it doesn't say."""
    found = (metadata_record(checkpoint, CONFIG_KEY) or {}).get(_POOLING)
    return found if isinstance(found, bool) else None


def is_named_pooled(name: str) -> bool:
    """Whether a file's name says that its net's residuals are averaged (POOLED_NAMES)."""
    return Path(name).stem.endswith(POOLED_NAMES)


def noted_hint(metadata: Mapping[str, str]) -> str | None:
    """What a file's metadata says about the net's hint, in words; None where it says nothing."""
    return metadata.get(HINT_KEY) or metadata.get(FOREIGN_HINT_KEY) or None


def save(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes safetensors under a temporary name, syncs and renames: the file is whole or absent.

    Missing folders are made. Values of the metadata that are no strings are written as JSON;
    `format`, which transformers and accelerate ask for where there is metadata, is "pt". Raises
    OSError, or CldmError, where the file can't be written.
    """
    path = Path(path)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    texts["format"] = "pt"
    try:
        with whole_file(path) as part:
            # safetensors lets nobody else read what it writes; a new file has the user's mode.
            part.touch()
            mode = part.stat().st_mode
            save_file(_separate(state), part, texts)
            part.chmod(mode)
            with open(part, "rb+") as handle:
                os.fsync(handle.fileno())
    except SafetensorError as error:
        raise CldmError(f"{path} can't be written ({error}): is there room on the disk?") from error


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of their own each, as safetensors wants them."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        separate[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return separate
