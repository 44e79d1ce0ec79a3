"""Where a control acts: masks, resampled to the size of each block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .config import UNetConfig, halved
from .errors import ShapeError
from .hints import OVERSHOOT, value_range
from .projections import Addition, Patch, weigh_patch
from .residuals import Residuals, Slot, resampled

Size = tuple[int, int]


def check_mask(mask: Tensor) -> None:
    """Raises ShapeError unless the mask is (M, H, W) with numbers in [0, 1]."""
    if mask.ndim != 3 or not mask.numel() or not mask.is_floating_point():
        raise ShapeError(
            f"The mask is {mask.dtype} of shape {tuple(mask.shape)}, expected floating-point "
            "numbers (M, height, width)."
        )
    low, high = value_range(mask)
    if not 0 <= low <= high <= 1:
        raise ShapeError(f"The mask's values go from {low:g} to {high:g}, expected [0, 1].")


def without_overshoot(picture: Tensor) -> Tensor:
    """A mask or picture whose values smooth resizing has led a little beyond [0, 1], clamped to it.

    One with values farther out than OVERSHOOT (other units, or marks of inpainting) stays as it is,
    for checks to refuse.
    """
    if not picture.numel() or not picture.is_floating_point():
        return picture
    low, high = value_range(picture)
    inside = -OVERSHOOT <= low <= high <= 1 + OVERSHOOT
    return picture.clamp(0, 1) if inside and not 0 <= low <= high <= 1 else picture


def resized(mask: Tensor, size: Size) -> Tensor:
    """A mask (M, H, W) at another size (h, w), soft: averaged where it shrinks.

    Where it grows it is interpolated.
    """
    return resampled(mask[:, None], size)[:, 0]


def residual_sizes(config: UNetConfig, height: int, width: int) -> tuple[Size, ...]:
    """(h, w) of a ControlNet's residuals z0 .. zn-1 and of the middle, for latents of this size."""
    size, sizes = (height, width), [(height, width)]
    for level, count in enumerate(config.num_res_blocks):
        sizes += [size] * count
        if level < len(config.num_res_blocks) - 1:
            size = halved(size)
            sizes.append(size)
    return (*sizes, size)


def mask_residuals(
    residuals: Residuals, mask: Tensor, sizes: Sequence[Size] | None = None
) -> Residuals:
    """The residuals times a mask (M, H, W) in [0, 1], M 1 or the batch; 1 keeps, 0 takes away.

    The mask lies over the whole picture and is resampled to each residual. sizes: those of the
    blocks, for residuals averaged over the picture, which have no size of their own
    (residual_sizes). Raises ShapeError where the mask doesn't fit.
    """
    check_mask(mask)
    count = len(residuals.output)
    own = list(sizes) if sizes is not None else [None] * (count + len(residuals.middle))

    def over(slot: Slot, known: Sequence[Size | None]) -> Slot:
        return tuple(
            None if item is None else masked(item, mask, size)
            for item, size in zip(slot, known, strict=True)
        )

    return Residuals(
        over(residuals.output, own[:count]),
        over(residuals.middle, own[count:]),
        over(residuals.input, [None] * len(residuals.input)),
    )


def masked(item: Tensor, mask: Tensor, size: Size | None = None) -> Tensor:
    """One residual (B, C, h, w) times a mask (M, H, W); see mask_residuals for the rest."""
    if len({mask.shape[0], item.shape[0]} - {1}) > 1:
        raise ShapeError(
            f"{mask.shape[0]} masks were given for a batch of {item.shape[0]}: give one, or one "
            f"for each."
        )
    found = size if size is not None and item.shape[2:] == (1, 1) else tuple(item.shape[2:])
    return item * resized(mask.to(item.device), (found[0], found[1])).to(item.dtype)[:, None]


def token_grid(tokens: int, size: Size) -> Size | None:
    """Rows and columns of a transformer's picture tokens, one for each 2x2 or 1x1 latents (h, w).

    None where neither is as many: which token lies where isn't known then.
    """
    height, width = size
    grids = ((-(-height // patch), -(-width // patch)) for patch in (2, 1))
    return next((grid for grid in grids if grid[0] * grid[1] == tokens), None)


def masked_tokens(item: Tensor, mask: Tensor, grid: Size) -> Tensor:
    """Tokens (B, h * w, C) times a mask (M, H, W); grid: their rows and columns (h, w)."""
    return item * _of_tokens(mask, item, grid)


def _of_tokens(mask: Tensor, like: Tensor, grid: Size) -> Tensor:
    """The mask (M, h * w, 1) for tokens in rows and columns, in the type of `like`."""
    return resized(mask.to(like.device), grid).to(like.dtype).flatten(1)[:, :, None]


def mask_patch(patch: Patch, mask: Tensor) -> Patch:
    """A ControlNet-LLLite's patch that acts where the mask (M, H, W) in [0, 1] says."""
    check_mask(mask)

    def weights(addition: Addition, x: Tensor) -> Tensor:
        return _of_tokens(mask, x, addition.grid(x.shape[1]))

    return weigh_patch(patch, weights)
