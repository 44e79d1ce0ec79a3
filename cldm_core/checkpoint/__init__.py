"""Safe reading and writing of checkpoints, and nets built from them."""

from .load import load_controlnet, load_unet
from .read import Checkpoint, read
from .write import config_metadata, save

__all__ = ["Checkpoint", "config_metadata", "load_controlnet", "load_unet", "read", "save"]
