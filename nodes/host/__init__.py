"""The adapter: the only package that knows how the host loads, patches and frees things.

Written against ComfyUI 0.3.64 and 0.18.1; names that only some versions have are asked for where
they are used.
"""

from __future__ import annotations

from .checks import check_conditioning, unet_config_of
from .control import HostControl, patcher_for
from .files import (
    Loaded,
    as_control,
    controlnet_files,
    controlnet_path,
    load_control,
    log,
    new_controlnet_path,
)
from .foreign import HostForeign
from .kinds import HostBound, HostLLLite, HostUnion
from .model_door import patch_model
from .shape import Shape

__all__ = [
    "HostBound",
    "HostControl",
    "HostForeign",
    "HostLLLite",
    "HostUnion",
    "Loaded",
    "Shape",
    "as_control",
    "check_conditioning",
    "controlnet_files",
    "controlnet_path",
    "load_control",
    "log",
    "new_controlnet_path",
    "patch_model",
    "patcher_for",
    "unet_config_of",
]
