"""The ControlNet family in plain PyTorch: configurations, nets, checkpoints, residuals, sampling.

It knows no host, no annotator, no folder convention and no global device.
"""

from .checkpoint import (
    CheckpointInfo,
    inspect_checkpoint,
    load_control,
    load_controlnet,
    load_unet,
)
from .config import SD15, SD21, SD21_V, SDXL, TINY, ControlNetConfig, UNetConfig
from .controlnet import ControlNet
from .diffusion import NoiseSchedule
from .errors import (
    CheckpointMismatch,
    CldmError,
    DamagedCheckpoint,
    FamilyMismatch,
    ShapeError,
    UnknownControlType,
    UnsupportedCheckpoint,
)
from .ldm import ControlLDM
from .residuals import Residuals, guess_mode_scales, merge, pool, weigh
from .surgery import add_control
from .unet import ControlledUNet

__all__ = [
    "SD15",
    "SD21",
    "SD21_V",
    "SDXL",
    "TINY",
    "CheckpointInfo",
    "CheckpointMismatch",
    "CldmError",
    "ControlLDM",
    "ControlNet",
    "ControlNetConfig",
    "ControlledUNet",
    "DamagedCheckpoint",
    "FamilyMismatch",
    "NoiseSchedule",
    "Residuals",
    "ShapeError",
    "UNetConfig",
    "UnknownControlType",
    "UnsupportedCheckpoint",
    "add_control",
    "guess_mode_scales",
    "inspect_checkpoint",
    "load_control",
    "load_controlnet",
    "load_unet",
    "merge",
    "pool",
    "weigh",
]
