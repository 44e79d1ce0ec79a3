"""Where a tile was cut from a picture."""

from __future__ import annotations

from torch import Tensor


def place_of(tile: Tensor, whole: Tensor) -> tuple[int, int] | None:
    """Top and left of the only place in `whole` (C, H, W) where `tile` (C, h, w) lies.

    None where it lies nowhere, or in more places than one: noise tells places apart, a plain
    picture doesn't.
    """
    height, width = tile.shape[-2:]
    rows, columns = whole.shape[-2] - height + 1, whole.shape[-1] - width + 1
    if tile.shape[0] != whole.shape[0] or min(rows, columns, height, width) < 1:
        return None
    whole = whole.to(tile.dtype)
    corners = (whole[:, :rows, :columns] == tile[:, :1, :1]).all(dim=0).nonzero()
    found = None
    for top, left in corners.tolist():
        if (whole[:, top : top + height, left : left + width] == tile).all():
            if found is not None:
                return None
            found = (top, left)
    return found
