"""Nodes for union ControlNets: what a hint is, and several hints at once."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..cldm_core import CldmError
from ..cldm_core.union import control_type_names
from .apply import hint_input
from .host.kinds import HostUnion
from .texts import CATEGORY

ALL_TYPES = 8
ONLY_PROMAX = ("tile", "repaint")
TYPES = {
    f"{name} (ProMax)" if name in ONLY_PROMAX else name: name
    for name in control_type_names(ALL_TYPES)
}
"""What a user chooses, and the type's name."""
KNOWN = "openpose, depth, scribble (soft edges too), canny (line art and mlsd too), normal and "
KNOWN += "segment; only ProMax nets know tile and repaint (masked pixels black)."


def type_input() -> io.Input:
    return io.Combo.Input("control_type", options=[*TYPES], tooltip=f"What the hint shows: {KNOWN}")


def type_name(control_type: str) -> str:
    """The type's name, of what was chosen or of a name."""
    return TYPES.get(control_type, control_type)


def union_of(control_net: Any) -> HostUnion:
    """The CONTROL_NET, if it is a union ControlNet of this pack."""
    if not isinstance(control_net, HostUnion):
        raise CldmError(
            "This control net knows no control types: they are for union ControlNets that were "
            "loaded by Load ControlNet (CLDM). Connect such a net, or leave this node out."
        )
    return control_net


class SetControlType(io.ComfyNode):
    """What the hint of the next Apply node is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_SetControlType",
            display_name="Set Control Type (CLDM)",
            category=CATEGORY,
            description="Tells a union ControlNet what its hint shows. Put it between Load "
            "ControlNet and Apply ControlNet.",
            inputs=[
                io.ControlNet.Input("control_net", tooltip="A union ControlNet."),
                type_input(),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net", tooltip="The net, told what its hint shows."
                )
            ],
        )

    @classmethod
    def execute(cls, control_net: Any, control_type: str) -> io.NodeOutput:
        return io.NodeOutput(union_of(control_net).with_type(type_name(control_type)))


class AddUnionHint(io.ComfyNode):
    """One more hint for a union ControlNet, read in the same pass."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_AddUnionHint",
            display_name="Add Union Hint (CLDM)",
            category=CATEGORY,
            description="Gives a union ControlNet a further hint of another type, which it reads "
            "in the same pass: two hints cost no more than one. Set Control Type says what the "
            "hint of Apply ControlNet is.",
            inputs=[
                io.ControlNet.Input("control_net", tooltip="A union ControlNet."),
                type_input(),
                hint_input(),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How much this hint weighs beside the others. 1 is what the net was "
                    "trained with; other numbers are an extra of this pack.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net", tooltip="The net with one hint more."
                )
            ],
        )

    @classmethod
    def execute(
        cls, control_net: Any, control_type: str, image: Tensor, scale: float
    ) -> io.NodeOutput:
        hint = image.movedim(-1, 1)
        return io.NodeOutput(union_of(control_net).with_hint(type_name(control_type), hint, scale))


UNION_NODES: list[type[io.ComfyNode]] = [SetControlType, AddUnionHint]
