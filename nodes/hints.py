"""Nodes that prepare hints: fitted to a size, with masked pixels marked; and curves from lists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..cldm_core import CldmError
from ..cldm_core.fitting import FITS, RESAMPLINGS, fit_hint, pixel_perfect
from ..cldm_core.inpainting import CONVENTIONS, inpaint_hint
from ..cldm_core.masks import without_overshoot
from .texts import CATEGORY

HINTS = f"{CATEGORY}/hints"
SIDES = {"default": 512, "min": 8, "max": 16384, "step": 8}
MINUS_ONE, BLACK = CONVENTIONS
INPAINT_NETS = {"-1 (SD 1.5 inpaint)": MINUS_ONE, "black (union repaint)": BLACK}
"""What a user chooses, and the convention's name."""


def side_inputs() -> list[io.Input]:
    """The size of the picture that will be made."""
    return [
        io.Int.Input("width", **SIDES, tooltip="The width of the picture to be made, in pixels."),
        io.Int.Input("height", **SIDES, tooltip="The height of the picture to be made, in pixels."),
    ]


def fit_input() -> io.Input:
    return io.Combo.Input(
        "fit",
        options=[*FITS],
        default=FITS[0],
        tooltip="Where the aspects differ: crop cuts off what doesn't fit, stretch changes the "
        "aspect, fill shows all of the hint and fills the bars with the colour of its borders.",
    )


def resampling_input() -> io.Input:
    return io.Combo.Input(
        "resampling",
        options=[*RESAMPLINGS],
        default=RESAMPLINGS[0],
        tooltip="auto looks at what the hint shows: one-pixel lines stay whole and one pixel wide, "
        "masks keep two colours, maps get no new ones, photos are smooth. nearest is what ComfyUI "
        "does by itself; it breaks thin lines.",
    )


class FitHint(io.ComfyNode):
    """A hint at the size of the picture, as it will be used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_FitHint",
            display_name="Fit Hint (CLDM)",
            category=HINTS,
            description="Brings a hint to the size of the picture to be made without breaking its "
            "lines. Apply ControlNet does the same by itself; this node shows it, and fits hints "
            "for other nodes.",
            inputs=[
                io.Image.Input("image", tooltip="The hint, such as an edge map from Canny."),
                *side_inputs(),
                fit_input(),
                resampling_input(),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The hint at width x height.")],
        )

    @classmethod
    def execute(
        cls, image: Tensor, width: int, height: int, fit: str, resampling: str
    ) -> io.NodeOutput:
        hint = fit_hint(image.movedim(-1, 1), width, height, fit=fit, resampling=resampling)
        return io.NodeOutput(hint.movedim(1, -1))


class InpaintHint(io.ComfyNode):
    """A picture with the pixels to be painted marked."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_InpaintHint",
            display_name="Inpaint Hint (CLDM)",
            category=HINTS,
            description="Makes the hint of an inpaint ControlNet: the picture, with the masked "
            "pixels marked as the net was trained. Connect it to the image of Apply ControlNet.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="The picture of which a part is to be painted anew."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where to paint: white, above 0.5. A batch gives one mask to each "
                    "picture.",
                ),
                io.Combo.Input(
                    "convention",
                    options=[*INPAINT_NETS],
                    default=next(iter(INPAINT_NETS)),
                    tooltip="How the net knows masked pixels: by -1 in all channels "
                    "(control_v11p_sd15_inpaint), or by black (the repaint type of xinsir's union "
                    "ProMax). The net's own page says which.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    tooltip="The hint. Previews show -1 as black.",
                )
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, convention: str) -> io.NodeOutput:
        picture = without_overshoot(image.movedim(-1, 1))
        over = without_overshoot(mask[None] if mask.ndim == 2 else mask)
        hint = inpaint_hint(picture, over, INPAINT_NETS[convention])
        return io.NodeOutput(hint.movedim(1, -1))


class PixelPerfect(io.ComfyNode):
    """The resolution for an annotator."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_PixelPerfect",
            display_name="Pixel-Perfect Resolution (CLDM)",
            category=HINTS,
            description="The resolution at which an annotator makes a hint that needs no "
            "enlargement for the picture to be made: connect it to the annotator's resolution.",
            inputs=[
                io.Image.Input("image", tooltip="The picture that the annotator will look at."),
                *side_inputs(),
                fit_input(),
            ],
            outputs=[
                io.Int.Output(
                    display_name="resolution", tooltip="The hint's short side, in pixels."
                )
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, width: int, height: int, fit: str) -> io.NodeOutput:
        return io.NodeOutput(pixel_perfect(image.shape[1], image.shape[2], height, width, fit))


class CurveFromList(io.ComfyNode):
    """Numbers from another pack as a text that Apply ControlNet reads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_CurveFromList",
            display_name="Curve from List (CLDM)",
            category=HINTS,
            description="Writes a list of numbers, such as a spline editor or an audio node gives, "
            "as the text that schedule of Apply ControlNet and frames of Control Timing read: "
            "1, 0.8, 0.5.",
            is_input_list=True,
            inputs=[
                io.Float.Input(
                    "values",
                    force_input=True,
                    tooltip="The numbers: a list of floats, or a float that holds a list.",
                )
            ],
            outputs=[
                io.String.Output(
                    display_name="curve", tooltip="The numbers with commas between them."
                )
            ],
        )

    @classmethod
    def execute(cls, values: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(", ".join(f"{number:g}" for number in numbers_in(values)))


def numbers_in(values: Any) -> Iterator[float]:
    """The numbers of a list of numbers, of lists, of arrays or of tensors, in their order."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list | tuple):
        for value in values:
            yield from numbers_in(value)
    elif isinstance(values, int | float) and math.isfinite(values):
        yield float(values)
    else:
        raise CldmError(
            f"The list holds {values!r}, expected finite numbers: connect a list of floats."
        )


HINT_NODES: list[type[io.ComfyNode]] = [FitHint, InpaintHint, PixelPerfect, CurveFromList]
