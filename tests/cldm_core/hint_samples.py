"""Hints to fit: drawings, photos, ramps, and photos with marked pixels."""

import cv2
import numpy as np
import torch

from .seeded import seeded_tensor


def drawn(side: int) -> np.ndarray:
    """One-pixel circles, an open arc, polylines and a wave, (side, side) of 0 and 255."""
    page = np.zeros((side, side), np.uint8)
    middle = (side // 2, side // 2)
    cv2.circle(page, middle, side // 3, 255)
    cv2.circle(page, middle, side // 8, 255)
    cv2.ellipse(page, (side // 4, side // 4), (side // 6, side // 10), 30, 0, 300, 255)
    corners = [
        [side // 20, side // 30],
        [side * 19 // 20, side // 15],
        [side * 19 // 20, side // 2],
    ]
    cv2.polylines(page, [np.array(corners, np.int32)], False, 255)
    steps = np.arange(0, side, 4)
    wave = np.stack([steps, side * 0.93 + side / 50 * np.sin(steps / 9)], axis=1)
    cv2.polylines(page, [wave.astype(np.int32)], False, 255)
    return page


def as_hint(page: np.ndarray) -> torch.Tensor:
    """(H, W) of 0..255 as a hint (1, 3, H, W)."""
    return torch.from_numpy(page / 255).float().expand(1, 3, *page.shape)


def as_page(hint: torch.Tensor) -> np.ndarray:
    return hint[0, 0].numpy()


def photo(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return seeded_tensor((batch, 3, height, width), "photo", 0).sigmoid()


def ramp(height: int, width: int) -> torch.Tensor:
    """Values from 0 at the left to 1 at the right."""
    return torch.linspace(0, 1, width).expand(1, 1, height, width).contiguous()


def marked_photo(height: int = 24, width: int = 24) -> torch.Tensor:
    hint = 0.5 + photo(height, width) / 2
    hint[:, :, 6:14, 8:20] = -1
    return hint
