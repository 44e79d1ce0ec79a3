"""One control of a standalone sampling: a net, its hint, and how it acts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .errors import CldmError, ShapeError
from .lllite import ControlLLLite
from .masks import check_mask, mask_patch, mask_residuals, residual_sizes
from .modes import AUTO, weights_for
from .projections import Patch
from .residuals import Residuals, guess_mode_scales, weigh
from .schedule import Schedule
from .union import ControlType

Hint = Tensor | Mapping[ControlType, Tensor]


@dataclass(frozen=True)
class Control:
    """A net of any family with its hint, and how it acts.

    - net: what `nets.ControlNetLike` describes.
    - hint: (B, hint_channels, 8h, 8w) in [0, 1], B 1 or one for each picture; for a union
      ControlNet one or several by their types.
    - strength: a factor of what the net adds.
    - start, end: shares of the steps in [0, 1]. The control acts on the steps that begin at `start`
      or later and before `end`, so 0.5 to 1.0 is the second half with the last step.
    - guess_mode: the unconditional side is left without control, and the finer blocks are weakened
      by the original's formula over as many residuals as the net has.
    - mode, curve: as `modes.weights_for` takes them; with `control` the unconditional side is left
      without control. A net with global_average_pooling always leaves it so, as its author says.
    - blocks: weights of the residuals as `weigh` takes them, in place of the mode's.
    - schedule: factors of the strength, by the share of the steps at which a step begins.
    - mask: (M, H, W) in [0, 1], where the control acts; M 1 or one for each picture.

    Raises ShapeError or CldmError where the hint, a number or the mask doesn't fit, or where the
    net has no such mode.
    """

    net: Any
    hint: Hint
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    mode: str = "balanced"
    curve: str = AUTO
    blocks: tuple[float, ...] | None = None
    schedule: Schedule | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        for hint in self.hints():
            if hint.ndim != 4:
                raise ShapeError(
                    f"The hint has shape {tuple(hint.shape)}, expected (B, channels, height, "
                    "width): to_hint makes one of a picture."
                )
        if not math.isfinite(self.strength):
            raise CldmError(f"The strength is {self.strength}, expected a finite number.")
        if not 0 <= self.start <= self.end <= 1:
            raise CldmError(
                f"The control starts at {self.start} and ends at {self.end}, expected shares of "
                "the steps in [0, 1] with the start not behind the end."
            )
        if self.mask is not None:
            check_mask(self.mask)
        self._check_modes()

    def _check_modes(self) -> None:
        if self.guess_mode and not hasattr(self.net, "zero_convs"):
            raise CldmError(
                f"Guess mode is for ControlNets, and this net is a {type(self.net).__name__}: "
                "switch it off."
            )
        if self.guess_mode and self.mode != "balanced":
            raise CldmError(
                f"Guess mode and the mode {self.mode!r} were both asked for: choose one of them."
            )
        if (self.mode, self.curve) != ("balanced", AUTO):
            weights_for(self.net, self.mode, self.curve)
        if self.blocks is not None:
            count = len(weights_for(self.net, "balanced"))
            if len(self.blocks) != count or not all(map(math.isfinite, self.blocks)):
                raise CldmError(
                    f"The weights of the blocks are {self.blocks}, expected {count} finite numbers "
                    f"for this net: one for each of its residuals, and none where it has none."
                )

    def hints(self) -> list[Tensor]:
        return list(self.hint.values()) if isinstance(self.hint, Mapping) else [self.hint]

    def encode(self, like: Tensor) -> Any:
        """The encoded hint, in the type and on the device of `like`."""
        if isinstance(self.hint, Mapping):
            return self.net.encode_hint({kind: hint.to(like) for kind, hint in self.hint.items()})
        return self.net.encode_hint(self.hint.to(like))

    def strength_at(self, progress: float) -> float:
        """The strength of the step that begins at `progress` in [0, 1); 0 outside the window."""
        if not self.start <= progress < self.end:
            return 0.0
        return self.strength * (1.0 if self.schedule is None else self.schedule.at(progress))

    def acts(self, progress: float, *, conditional: bool) -> bool:
        """Whether it acts on a side of the step that begins at `progress` in [0, 1)."""
        if not conditional and self._one_sided:
            return False
        weights = self._weights
        return self.strength_at(progress) != 0 and (weights is None or any(weights))

    @property
    def _one_sided(self) -> bool:
        pooled = getattr(self.net, "pooled", False)  # a wrapper may not say
        return pooled or self.guess_mode or self.mode == "control"

    @property
    def _weights(self) -> tuple[float, ...] | None:
        """The weights of the net's residuals, None where all are 1."""
        if self.blocks is not None:
            return self.blocks
        if self.guess_mode:
            return guess_mode_scales(1.0, len(weights_for(self.net, "balanced")))
        return None if self.mode == "balanced" else weights_for(self.net, self.mode, self.curve)

    def evaluate(
        self,
        features: Any,
        strength: float,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
    ) -> Residuals | tuple[Patch, ...]:
        """What the net adds to the UNet, with the strength of the step; y: SDXL's vectors."""
        if isinstance(self.net, ControlLLLite):
            patches = self.net(x, features, timesteps, context, strength=strength)
            if self.mask is None:
                return patches  # type: ignore[no-any-return]
            return tuple(mask_patch(patch, self.mask) for patch in patches)
        residuals: Residuals = self.net(x, features, timesteps, context, y)
        weights = self._weights
        residuals = weigh(
            residuals, strength if weights is None else [strength * weight for weight in weights]
        )
        if self.mask is None:
            return residuals
        config = getattr(self.net, "unet_config", None)
        sizes = residual_sizes(config, *x.shape[2:]) if residuals.output and config else None
        return mask_residuals(residuals, self.mask, sizes)
