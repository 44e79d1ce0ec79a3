"""One node for each annotator, made from its record."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..annotators import ANNOTATORS, Annotator
from .texts import CATEGORY


def annotated(annotator: Annotator, image: Tensor, **params: int) -> Tensor:
    """The hints of the host's IMAGE (B, H, W, C) in [0, 1], as IMAGE."""
    # Sharpening and enlarging overshoot a little; NaN survives the clamp and is refused.
    hints = annotator(image.float().clamp(0, 1).cpu().numpy(), **params)
    return torch.from_numpy(hints.astype(np.float32) / 255)


def make_node(annotator: Annotator) -> type[io.ComfyNode]:
    """The node class of one record."""

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        return io.Schema(
            node_id=f"CLDM_{annotator.name.capitalize()}",
            display_name=f"{annotator.title} (CLDM)",
            category=f"{CATEGORY}/annotators",
            description=annotator.description,
            inputs=[
                io.Image.Input("image", tooltip="The pictures to make hints of."),
                *(
                    io.Int.Input(
                        name,
                        default=param.default,
                        min=param.min,
                        max=param.max,
                        tooltip=param.help[0].upper() + param.help[1:] + ".",
                    )
                    for name, param in annotator.params.items()
                ),
            ],
            outputs=[
                io.Image.Output(display_name="hint", tooltip="The hints, for Apply ControlNet.")
            ],
        )

    def execute(cls: type[io.ComfyNode], image: Tensor, **params: Any) -> io.NodeOutput:
        return io.NodeOutput(annotated(annotator, image, **params))

    members = {
        "__doc__": annotator.description,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    return type(f"{annotator.name.capitalize()}Node", (io.ComfyNode,), members)


ANNOTATOR_NODES = [make_node(annotator) for annotator in ANNOTATORS.values()]
