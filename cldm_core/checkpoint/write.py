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
    """A file's metadata that carries the configuration.

    So that nothing about the file must be guessed.
    """
    kind = "unet" if isinstance(config, UNetConfig) else "controlnet"
    return {CONFIG_KEY: json.dumps({"kind": kind, **config.to_dict()})}


def save(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes safetensors under a temporary name, syncs and renames: the file is whole or absent.

    Values of the metadata that are no strings are written as JSON.
    """
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    temporary = path.with_name(path.name + ".part")
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary, texts)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
