"""The adapter: the only package that knows how the host loads, patches and frees things.

Written against ComfyUI 0.3.64 and 0.18.1; names that only some versions have are asked for where
they are used.
"""

from __future__ import annotations

from .applied import Applied
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
from .foreign import NO_MASK, HostForeign
from .kinds import HostBound, HostLLLite, HostUnion
from .model_door import patch_model
from .rows import NEGATIVE, POSITIVE, SIDE
from .settings import Settings, frames_of, mask_of, schedule_of

__all__ = [
    "NEGATIVE",
    "NO_MASK",
    "POSITIVE",
    "SIDE",
    "Applied",
    "HostBound",
    "HostControl",
    "HostForeign",
    "HostLLLite",
    "HostUnion",
    "Loaded",
    "Settings",
    "as_control",
    "check_conditioning",
    "controlnet_files",
    "controlnet_path",
    "frames_of",
    "load_control",
    "log",
    "mask_of",
    "new_controlnet_path",
    "patch_model",
    "patcher_for",
    "schedule_of",
    "unet_config_of",
]
