"""How a control acts: its mode, over the blocks, the sampling, the pictures and the place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...cldm_core import CldmError, FrameCurve, Schedule
from ...cldm_core.block_text import parse_blocks
from ...cldm_core.fitting import crop_hint
from ...cldm_core.hints import HINT_SCALE
from ...cldm_core.masks import check_mask, resized, without_overshoot
from ...cldm_core.modes import weights_for
from .rows import NEGATIVE, Batch

TIMESTEPS, STEPS = "timesteps", "steps"
BALANCED, PROMPT, CONTROL = "balanced", "prompt", "control"


@dataclass(frozen=True, eq=False)
class Settings:
    """What Apply sets beside strength and window; by default nothing, as behind the host's node.

    mode: of cldm_core.modes.
    curve: of the soft weights; `auto` takes the family's own.
    blocks: weights of the blocks as text, in place of the curve.
    schedule: factors of the strength over the sampling.
    unit: what window and schedule are shares of, TIMESTEPS or STEPS.
    frames: factors of the pictures of a batch.
    mask: (M, H, W) in [0, 1], one or one for each picture.
    fit: of cldm_core.fitting.
    as_host: hints are enlarged and rows computed as the host does it, for latents that are the
        host's bit for bit.
    reuse: for how many steps residuals are used once they are computed.
    record_calls: whether a GPU plays the net from a recording (a CUDA graph) where it can.
    """

    mode: str = BALANCED
    curve: str = "auto"
    blocks: str = ""
    schedule: Schedule | None = None
    unit: str = TIMESTEPS
    frames: FrameCurve | None = None
    mask: Tensor | None = None
    fit: str = "crop"
    as_host: bool = True
    reuse: int = 1
    record_calls: bool = True

    def __post_init__(self) -> None:
        if self.mask is not None:
            check_mask(self.mask)

    @property
    def resampling(self) -> str:
        """How hints are enlarged, of cldm_core.fitting."""
        return "nearest" if self.as_host else "auto"

    @property
    def only_positive(self) -> bool:
        """Whether the negative side goes without."""
        return self.mode == CONTROL

    def weights(self, net: Any) -> tuple[float, ...] | None:
        """Weights of a net's residuals, None where all are 1; raises CldmError for a net without.

        Where the user gives weights they replace those of the mode, as in stable-diffusion-webui.
        """
        if self.mode == BALANCED and not self.blocks.strip():
            return None
        if not self.blocks.strip():
            return weights_for(net, self.mode, self.curve)
        count = len(weights_for(net, BALANCED))
        if not count:
            raise CldmError(
                "This net adds to the attention and not to blocks, so it takes no block weights: "
                "leave the text of Control Weights empty."
            )
        return parse_blocks(self.blocks, count)

    def factors(self, batch: Batch, blacks: Sequence[bool], *, only_positive: bool) -> list[float]:
        """What each row's control is multiplied with; 0 where it gets none.

        Rows whose side nobody knows get it in full, and rows whose part of the mask is black none;
        blacks: which those are, as `black` tells.
        """
        of_frames = self.frames.factors(batch.total) if self.frames else (1.0,) * batch.total
        rows = zip(batch.sides, blacks, strict=True)
        return [
            0.0 if black or (only_positive and side == NEGATIVE) else of_frames[batch.place(row)[1]]
            for row, (side, black) in enumerate(rows)
        ]

    def why_nobody(self, batch: Batch, blacks: Sequence[bool], *, only_positive: bool) -> str:
        """Why all factors of a batch are 0, in a few words."""
        if only_positive and all(side == NEGATIVE for side in batch.sides):
            return "no row of this side"
        return "outside of the mask" if all(blacks) else "no picture"

    def black(self, batch: Batch) -> tuple[bool, ...]:
        """Whether each row's part of the mask is 0 throughout."""
        if self.mask is None:
            return (False,) * len(batch)
        places = (batch.place(row) for row in range(len(batch)))
        cuts = (self._cut(frame, batch.prompts[prompt]) for prompt, frame in places)
        return tuple(not cut.any() for cut in cuts)

    def mask_for(self, batch: Batch, rows: Sequence[int]) -> Tensor | None:
        """The mask (1 or rows, H, W) of these rows, cut to their areas."""
        if self.mask is None:
            return None
        places = [batch.place(row) for row in rows]
        count = self.mask.shape[0]
        if not any(batch.areas):
            return self.mask if count == 1 else self.mask[[frame % count for _, frame in places]]
        parts = [self._cut(frame, batch.prompts[prompt]) for prompt, frame in places]
        # What has no area here is as large as what has one, the mask has any size.
        height, width = next(area[:2] for area in batch.areas if area)
        size = (HINT_SCALE * height, HINT_SCALE * width)
        return torch.cat([resized(part, size) for part in parts])

    def _cut(self, frame: int, row: Any) -> Tensor:
        """The part (1, h, w) of a picture's mask that lies over a row's area; all without one."""
        index = frame % len(self.mask)  # type: ignore[arg-type]
        mask: Tensor = self.mask[index : index + 1]  # type: ignore[index]
        if row is None or row.area is None:
            return mask
        height, width = (side * HINT_SCALE for side in row.size)
        return crop_hint(resized(mask, (height, width))[:, None], row.area)[:, 0]


def mask_of(mask: Tensor | None) -> Tensor | None:
    """The host's MASK, which has its batch's dimension or not, as (M, H, W) in [0, 1]."""
    if mask is None:
        return None
    return without_overshoot(mask[None] if mask.ndim == 2 else mask)


def schedule_of(text: str) -> Schedule | None:
    """The schedule of a node's text, None for an empty one; raises CldmError."""
    return Schedule.parse(text) if text.strip() else None


def frames_of(text: str) -> FrameCurve | None:
    """The factors of a node's text, None for an empty one; raises CldmError."""
    return FrameCurve.parse(text) if text.strip() else None
