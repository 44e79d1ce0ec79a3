"""Safe reading and writing of checkpoints, and nets built from them."""

from .convert import as_checkpoint, convert
from .inspect import CheckpointInfo, inspect_checkpoint
from .load import controlnet_config_of, load_control, load_controlnet, load_unet
from .read import Checkpoint, read
from .write import config_metadata, save

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "as_checkpoint",
    "config_metadata",
    "controlnet_config_of",
    "convert",
    "inspect_checkpoint",
    "load_control",
    "load_controlnet",
    "load_unet",
    "read",
    "save",
]
