"""The ControlNet family in plain PyTorch: configurations, nets, checkpoints, residuals, sampling.

It knows no host, no annotator, no folder convention and no global device.
"""

from .block_text import blocks_text, parse_blocks
from .checkpoint import (
    CheckpointInfo,
    convert,
    inspect_checkpoint,
    load_control,
    load_controlnet,
    load_unet,
)
from .config import SD15, SD21, SD21_V, SDXL, TINY, ControlNetConfig, UNetConfig
from .control_lora import BoundControlNet
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
from .frames import FrameCurve
from .ldm import ControlLDM
from .lllite import ControlLLLite, LLLiteConfig
from .low_rank import extract_control_lora
from .matching import check_family
from .modes import block_weights, family_of, weights_for
from .residuals import (
    Residuals,
    guess_mode_scales,
    merge,
    pool,
    relative_change,
    resample,
    spread_rows,
    weigh,
    weigh_rows,
)
from .schedule import Schedule
from .surgery import add_control, apply_difference, difference, merge_nets, transfer
from .t2i_adapter import AdapterConfig, T2IAdapter
from .unet import ControlledUNet
from .union import UnionConfig, UnionControlNet

__all__ = [
    "SD15",
    "SD21",
    "SD21_V",
    "SDXL",
    "TINY",
    "AdapterConfig",
    "BoundControlNet",
    "CheckpointInfo",
    "CheckpointMismatch",
    "CldmError",
    "ControlLDM",
    "ControlLLLite",
    "ControlNet",
    "ControlNetConfig",
    "ControlledUNet",
    "DamagedCheckpoint",
    "FamilyMismatch",
    "FrameCurve",
    "LLLiteConfig",
    "NoiseSchedule",
    "Residuals",
    "Schedule",
    "ShapeError",
    "T2IAdapter",
    "UNetConfig",
    "UnionConfig",
    "UnionControlNet",
    "UnknownControlType",
    "UnsupportedCheckpoint",
    "add_control",
    "apply_difference",
    "block_weights",
    "blocks_text",
    "check_family",
    "convert",
    "difference",
    "extract_control_lora",
    "family_of",
    "guess_mode_scales",
    "inspect_checkpoint",
    "load_control",
    "load_controlnet",
    "load_unet",
    "merge",
    "merge_nets",
    "parse_blocks",
    "pool",
    "relative_change",
    "resample",
    "spread_rows",
    "transfer",
    "weigh",
    "weigh_rows",
    "weights_for",
]
