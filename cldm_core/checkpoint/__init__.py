"""Safe reading and writing of checkpoints, and nets built from them."""

from .inspect import CheckpointInfo, inspect_checkpoint
from .load import load_controlnet, load_unet
from .read import Checkpoint, read
from .write import config_metadata, save

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "config_metadata",
    "inspect_checkpoint",
    "load_controlnet",
    "load_unet",
    "read",
    "save",
]
