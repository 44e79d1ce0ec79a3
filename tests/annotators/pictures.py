"""Pictures of noise, as arrays and as files: every annotator finds something in them."""

from pathlib import Path

import cv2
import numpy as np


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, seed: int, height: int = 24, width: int = 31, channels: int = 3) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
