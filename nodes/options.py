"""Nodes for what Apply leaves to the few who need it: weights, timing, speed."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.v0_0_2 import io

from ..cldm_core.block_text import PRESETS
from ..cldm_core.modes import AUTO, CURVES
from .apply import OPTIONS
from .host.settings import Settings, frames_of
from .texts import CATEGORY

OWN = "text"
"""The choice that takes the weights from the text."""
UNITS = {"timesteps (ComfyUI)": "timesteps", "steps (WebUI)": "steps"}


def options_input() -> io.Input:
    return io.Custom(OPTIONS).Input(
        "options", optional=True, tooltip="Further options, to be kept beside these."
    )


def options_output() -> io.Output:
    return io.Custom(OPTIONS).Output(
        display_name="options",
        tooltip="For the input options of Apply ControlNet or Patch Model.",
    )


class ControlWeights(io.ComfyNode):
    """How much each block of the UNet gets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ControlWeights",
            display_name="Control Weights (CLDM)",
            category=CATEGORY,
            description="How much each block of the UNet gets of a control: 13 numbers for SD 1.5 "
            "and 2.1, 10 for SDXL, 4 for T2I-Adapters; the fine blocks come first, the middle is "
            "last. Numbers or a preset replace the weights that the mode would have.",
            inputs=[
                io.Combo.Input(
                    "curve",
                    options=[AUTO, *CURVES],
                    default=AUTO,
                    tooltip="The weights of the modes that favour one side. original: "
                    "0.825^(12-i), for SD 1.5 and 2.1. a1111: the WebUI's, for SDXL and adapters "
                    "too. diffusers: a ramp from 0.1 to 1. auto: original, and a1111 where the "
                    "original has none.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[OWN, *PRESETS],
                    default=OWN,
                    tooltip="Ready-made weights; text takes those below.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="Numbers for all blocks, as 0.1, 0.2 and so on, or for some, as 0-3: "
                    "0.5, 8: 0, middle: 1, rest: 1. Empty leaves the mode's.",
                ),
                options_input(),
            ],
            outputs=[options_output()],
        )

    @classmethod
    def execute(
        cls, curve: str, preset: str, weights: str, options: Settings | None = None
    ) -> io.NodeOutput:
        blocks = weights if preset == OWN else preset
        return io.NodeOutput(replace(options or Settings(), curve=curve, blocks=blocks))


class ControlTiming(io.ComfyNode):
    """What the numbers of a window and a schedule count, and a curve over a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ControlTiming",
            display_name="Control Timing (CLDM)",
            category=CATEGORY,
            description="What start, end and schedule are shares of, and how strongly each "
            "picture of a batch (each frame of a video) is controlled.",
            inputs=[
                io.Combo.Input(
                    "unit",
                    options=[*UNITS],
                    default=next(iter(UNITS)),
                    tooltip="timesteps: shares of the noise schedule, as everywhere in ComfyUI. "
                    "steps: shares of the sampler's steps, as in the WebUI.",
                ),
                io.String.Input(
                    "frames",
                    default="",
                    tooltip="Factors of the strength by picture, as 0: 1, 8: 0.5 cosine, -1: 0 "
                    "(-1 is the last), 0-7: 0.5, or numbers alone, one for each. Empty is 1 for "
                    "all. Pictures with 0 are not computed.",
                ),
                options_input(),
            ],
            outputs=[options_output()],
        )

    @classmethod
    def execute(cls, unit: str, frames: str, options: Settings | None = None) -> io.NodeOutput:
        timing = {"unit": UNITS[unit], "frames": frames_of(frames)}
        return io.NodeOutput(replace(options or Settings(), **timing))


class ControlSpeed(io.ComfyNode):
    """What may be given up for time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ControlSpeed",
            display_name="Control Speed (CLDM)",
            category=CATEGORY,
            description="Computes a control at every second or third step only and uses it again "
            "in between. The picture changes a little: Apply ControlNet shows by how much the "
            "control drifted.",
            inputs=[
                io.Int.Input(
                    "reuse",
                    default=1,
                    min=1,
                    max=8,
                    tooltip="For how many steps a computed control is used: 1 computes it at each, "
                    "2 at every second.",
                ),
                io.Boolean.Input(
                    "cuda_graphs",
                    default=True,
                    optional=True,
                    tooltip="On an NVIDIA GPU: record the net's work at the second step and play "
                    "it from then on. The picture stays the same; the net's work needs memory of "
                    "its own until the sampling ends. Used only where there is plenty of it.",
                ),
                options_input(),
            ],
            outputs=[options_output()],
        )

    @classmethod
    def execute(
        cls, reuse: int, options: Settings | None = None, cuda_graphs: bool = True
    ) -> io.NodeOutput:
        speed = {"reuse": reuse, "record_calls": cuda_graphs}
        return io.NodeOutput(replace(options or Settings(), **speed))


OPTION_NODES: list[type[io.ComfyNode]] = [ControlWeights, ControlTiming, ControlSpeed]
