"""Nodes that make new control nets of given ones, and write them to files."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.v0_0_2 import io

from ..cldm_core import extract_control_lora, merge_nets, transfer
from ..cldm_core.checkpoint import Checkpoint, as_checkpoint, convert
from ..cldm_core.checkpoint.dtypes import NAMED_TYPES
from ..cldm_core.weights import TWIN_PARTS
from .apply import CATEGORY
from .host import HostControl, as_control, new_controlnet_path
from .host.show import show
from .host.weights import model_weights

SURGERY = f"{CATEGORY}/weights"
AS_IT_IS = "as it is"


def weights_of(control_net: Any, name: str) -> Checkpoint:
    """The weights of a CONTROL_NET of this pack."""
    if not isinstance(control_net, HostControl):
        raise ValueError(
            f"The {name} control net was loaded by ComfyUI's own loader, and this node works on "
            f"nets for SD 1.5, 2.1 and SDXL: load it with Load ControlNet (CLDM)."
        )
    return as_checkpoint(control_net.patcher.model, f"The {name} net")


def net_input(name: str, tooltip: str) -> io.Input:
    return io.ControlNet.Input(name, tooltip=tooltip)


def net_output(tooltip: str) -> io.Output:
    return io.ControlNet.Output(display_name="control_net", tooltip=tooltip)


class MergeControlNets(io.ComfyNode):
    """Two nets of one family mixed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_MergeControlNets",
            display_name="Merge ControlNets (CLDM)",
            category=SURGERY,
            description="Mixes the weights of two control nets of one kind and family: "
            "(1 - ratio) of the first and ratio of the second.",
            inputs=[
                net_input("first", "The net that ratio 0 gives."),
                net_input("second", "The net that ratio 1 gives."),
                io.Float.Input(
                    "ratio",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the second net: 0 none, 1 nothing else.",
                ),
            ],
            outputs=[net_output("The mixture.")],
        )

    @classmethod
    def execute(cls, first: Any, second: Any, ratio: float) -> io.NodeOutput:
        one, other = weights_of(first, "first"), weights_of(second, "second")
        return io.NodeOutput(rebuilt(merge_nets(one, other, ratio), one))


class TransferControlNet(io.ComfyNode):
    """A net moved from the base it was trained on to another base."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_TransferControlNet",
            display_name="Transfer ControlNet (CLDM)",
            category=SURGERY,
            description="Moves a ControlNet from the base model it was trained on to another one "
            "of the same family: what it learned beyond the source is added to the target.",
            inputs=[
                net_input("control_net", "The net to move."),
                io.Model.Input("source", tooltip="The model that the net was trained on."),
                io.Model.Input("target", tooltip="The model that the net shall steer."),
            ],
            outputs=[net_output("The net for the target.")],
        )

    @classmethod
    def execute(cls, control_net: Any, source: Any, target: Any) -> io.NodeOutput:
        net = weights_of(control_net, "given")
        # Both may be patched forms of one model, which the host keeps in the same memory.
        old = {
            key: value.clone() if key.startswith(TWIN_PARTS) else value
            for key, value in model_weights(source).items()
        }
        return io.NodeOutput(rebuilt(transfer(net, old, model_weights(target)), net))


class ExtractControlLora(io.ComfyNode):
    """A net as a small Control-LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ExtractControlLora",
            display_name="Extract Control-LoRA (CLDM)",
            category=SURGERY,
            description="Makes a ControlNet small: what it has beyond its base model is stored at "
            "a low rank. The node shows how much of it is lost.",
            inputs=[
                net_input("control_net", "A ControlNet."),
                io.Model.Input("model", tooltip="The base model that the net was trained on."),
                io.Int.Input(
                    "rank",
                    default=128,
                    min=1,
                    max=1280,
                    tooltip="Higher keeps more and takes more space: 128 and 256 are usual.",
                ),
            ],
            outputs=[
                net_output("The Control-LoRA; it can be applied at once, or saved."),
                io.String.Output(display_name="report", tooltip="Rank, loss and size."),
            ],
        )

    @classmethod
    def execute(cls, control_net: Any, model: Any, rank: int) -> io.NodeOutput:
        net = weights_of(control_net, "given")
        bar: Any = None

        def progress(done: int, count: int) -> None:
            # It also lets the user interrupt.
            nonlocal bar
            bar = bar or comfy.utils.ProgressBar(count)
            bar.update_absolute(done)

        state, report = extract_control_lora(net, model_weights(model), rank, progress=progress)
        show(str(report))
        return io.NodeOutput(rebuilt(state, net), str(report))


class SaveControlNet(io.ComfyNode):
    """A net as a file of the host's `controlnet` folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_SaveControlNet",
            display_name="Save ControlNet (CLDM)",
            category=SURGERY,
            description="Writes a control net to models/controlnet as safetensors, with its "
            "configuration inside. A name that is taken gets a number.",
            inputs=[
                net_input("control_net", "The net to save."),
                io.String.Input(
                    "name",
                    default="my_control_net",
                    tooltip="The file's name, without ending; a folder in front is allowed.",
                ),
                io.Combo.Input(
                    "number_type",
                    options=[AS_IT_IS, *NAMED_TYPES],
                    default="fp16",
                    tooltip="What the weights are stored in; fp16 is usual. The 8-bit types take "
                    "half of its space and lose some precision.",
                ),
                io.Combo.Input(
                    "keys",
                    options=["cldm", "diffusers"],
                    default="cldm",
                    tooltip="Whose names the weights get: cldm is the original's, which ComfyUI "
                    "and others read; diffusers is for that library.",
                ),
                io.String.Input(
                    "hint",
                    default="",
                    optional=True,
                    tooltip="What the net's hint must be like, noted in the file, such as "
                    "canny edges, white on black.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name of the file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, control_net: Any, name: str, number_type: str, keys: str, hint: str = ""
    ) -> io.NodeOutput:
        path = new_controlnet_path(name)
        info = convert(
            weights_of(control_net, "given"),
            path,
            layout=None if keys == "cldm" else keys,
            dtype=NAMED_TYPES.get(number_type),
            hint=hint or None,
        )
        show(f"{path.name}: {info}")
        return io.NodeOutput(path.name)


def rebuilt(state: dict[str, Any], like: Checkpoint) -> HostControl:
    """The CONTROL_NET of new weights with the configuration of a given net."""
    return as_control(Checkpoint(state, like.metadata, like.name))
