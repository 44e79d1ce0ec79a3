"""What `apply.py` compares: the ways of sampling, and what arithmetic expects of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NONE, BUILT_IN, ADVANCED, EXACT = "no control", "built-in", "Advanced-ControlNet", "exact"
MORE, WINDOW = "ControlNet is more important", "window 0-0.5"
REUSE_2, REUSE_3, BF16 = "reuse 2", "reuse 3", "bf16"
SPEED_NODE = "CLDM_ControlSpeed"

WHOLE = 1.344
"""A step with control over one without, by arithmetic: the net computes 0.344 of the UNet's."""
BF16_COST = 0.56
"""A forward of the net in bf16 over one in fp32, as issue 4 measured it on 2 cores."""


@dataclass(frozen=True)
class Variant:
    """One way of sampling; `load`, `apply` and `speed` are inputs of this pack's nodes.

    by: whose nodes; steps: the shortest sampling whose mean step is that of a long one; frames:
    latents and hints in the batch; left: the part of the net's work that remains by arithmetic.
    """

    name: str
    by: str = EXACT
    steps: int = 1
    frames: int = 1
    load: Mapping[str, Any] = field(default_factory=dict)
    apply: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    left: float = 1.0

    @property
    def baseline(self) -> str:
        """The name of the same sampling without control."""
        return NONE if self.frames == 1 else f"{NONE}, {self.frames} frames"

    @property
    def target(self) -> float:
        """A step over one without control, by arithmetic."""
        return 1 + (WHOLE - 1) * self.left


def batched(by: str, frames: int = 2) -> Variant:
    return Variant(f"{by}, {frames} frames", by, frames=frames)


VARIANTS = (
    Variant(NONE, NONE, steps=2),
    Variant(BUILT_IN, BUILT_IN),
    Variant(ADVANCED, ADVANCED),
    Variant(EXACT),
    Variant(MORE, apply={"mode": "ControlNet is more important"}, left=1 / 2),
    Variant(WINDOW, steps=2, apply={"end_percent": 0.5}, left=1 / 2),
    Variant(REUSE_2, steps=2, speed={"reuse": 2}, left=1 / 2),
    Variant(REUSE_3, steps=3, speed={"reuse": 3}, left=1 / 3),
    Variant(BF16, load={"precision": "bf16"}, left=BF16_COST),
    batched(NONE),
    batched(BUILT_IN),
    batched(EXACT),
)
