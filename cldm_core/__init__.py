"""The ControlNet family in plain PyTorch: configurations, nets, checkpoints, residuals, sampling.

It knows no host, no annotator, no folder convention and no global device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .block_text import blocks_text, parse_blocks
from .checkpoint import (
    Checkpoint,
    CheckpointInfo,
    convert,
    inspect_checkpoint,
    load_control,
    load_controlnet,
    load_unet,
    save,
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
from .fitting import fit_hint
from .frames import FrameCurve, FrameKeyframe
from .inpainting import inpaint_hint
from .ldm import ControlLDM
from .lllite import ControlLLLite, LLLiteConfig
from .low_rank import extract_control_lora
from .masks import mask_residuals, residual_sizes
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
from .schedule import Keyframe, Schedule
from .surgery import add_control, apply_difference, difference, merge_nets, transfer
from .t2i_adapter import AdapterConfig, T2IAdapter
from .unet import ControlledUNet
from .union import UnionConfig, UnionControlNet

if TYPE_CHECKING:
    from .control import Control
    from .pipeline import Pipeline, Settings, to_hint
    from .single_file import load_pipeline

__all__ = [
    "SD15",
    "SD21",
    "SD21_V",
    "SDXL",
    "TINY",
    "AdapterConfig",
    "BoundControlNet",
    "Checkpoint",
    "CheckpointInfo",
    "CheckpointMismatch",
    "CldmError",
    "Control",
    "ControlLDM",
    "ControlLLLite",
    "ControlNet",
    "ControlNetConfig",
    "ControlledUNet",
    "DamagedCheckpoint",
    "FamilyMismatch",
    "FrameCurve",
    "FrameKeyframe",
    "Keyframe",
    "LLLiteConfig",
    "NoiseSchedule",
    "Pipeline",
    "Residuals",
    "Schedule",
    "Settings",
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
    "fit_hint",
    "guess_mode_scales",
    "inpaint_hint",
    "inspect_checkpoint",
    "load_control",
    "load_controlnet",
    "load_pipeline",
    "load_unet",
    "mask_residuals",
    "merge",
    "merge_nets",
    "parse_blocks",
    "pool",
    "relative_change",
    "resample",
    "residual_sizes",
    "save",
    "spread_rows",
    "to_hint",
    "transfer",
    "weigh",
    "weigh_rows",
    "weights_for",
]

_LATE = {
    "Control": "control",
    "Pipeline": "pipeline",
    "Settings": "pipeline",
    "load_pipeline": "single_file",
    "to_hint": "pipeline",
}
"""Public names by module, imported when they are asked for: a host starts without them."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
