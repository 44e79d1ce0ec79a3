"""State dicts to files that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..config import ControlNetConfig, UNetConfig

CONFIG_KEY = "cldm_core.config"


def config_metadata(config: UNetConfig | ControlNetConfig) -> dict[str, str]:
    """A file's metadata that carries the configuration, so that nothing must be guessed."""
    kind = "unet" if isinstance(config, UNetConfig) else "controlnet"
    return {CONFIG_KEY: json.dumps({"kind": kind, **config.to_dict()})}


def save(
    state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes safetensors under a temporary name, syncs and renames: the file is whole or absent.

    Missing folders are made. Values of the metadata that are no strings are written as JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # safetensors lets nobody else read what it writes; a new file of ours has the user's mode.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(_separate(state), temporary, texts)
        temporary.chmod(mode)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
