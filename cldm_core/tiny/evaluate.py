"""How well the embedded ControlNets are followed on pictures that no training saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..controlnet import ControlNet
from ..metrics import Array
from ..pipeline import Control, Picture, Pipeline, Settings, to_hint
from .data import SIZE, Emoji, render

STEPS, GUIDANCE, SEED = 25, 3.0, 1234

HintOfPicture = Callable[[Picture], Picture]
"""A picture (H, W, 3) to its hint (H, W, 3), both uint8."""
Score = Callable[[Array, Array], float]
"""Two boolean maps (H, W), of the generated picture and of the hint, to a number from 0 to 1."""


def originals(pictures: Sequence[Emoji]) -> Picture:
    """The pictures (N, 128, 128, 3) as they are, on white."""
    return np.stack([(render(emoji)[0] * 255).round().astype(np.uint8) for emoji in pictures])


def sample(
    pipeline: Pipeline,
    prompts: Sequence[str],
    net: ControlNet | None = None,
    hints: Picture | None = None,
    *,
    strength: float = 1.0,
    steps: int = STEPS,
) -> Picture:
    """One picture for each prompt with fixed seeds, steered where a net and hints are given."""
    settings = Settings(
        steps=steps, guidance=GUIDANCE, seed=SEED, width=SIZE, height=SIZE, count=len(prompts)
    )
    controls = [] if net is None or hints is None else [Control(net, to_hint(hints), strength)]
    return pipeline(prompts, controls, settings)


def adherence(
    pictures: Picture, hints: Picture, hint_of: HintOfPicture, score: Score
) -> list[float]:
    """The score of each picture's own hint against the one it was to follow."""
    return [
        score(hint_of(picture)[..., 0] > 127, hint[..., 0] > 127)
        for picture, hint in zip(pictures, hints, strict=True)
    ]
