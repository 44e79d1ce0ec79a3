"""Nodes that make new control nets of given ones, and write them to files."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.v0_0_2 import io

from ..cldm_core import CldmError, UnsupportedCheckpoint, extract_control_lora, transfer
from ..cldm_core.checkpoint import Checkpoint, as_checkpoint, convert
from ..cldm_core.checkpoint.convert import SOURCES_KEY, Layout, sources_in
from ..cldm_core.checkpoint.dtypes import NAMED_TYPES
from ..cldm_core.surgery import merged
from ..cldm_core.weights import TWIN_PARTS
from .host.bars import progress_bar
from .host.control import HostControl
from .host.files import as_control, controlnet_name, new_controlnet_path
from .host.weights import model_weights
from .texts import CATEGORY, shows_text, text_result

SURGERY = f"{CATEGORY}/weights"
AS_LOADED = "as loaded"
LAYOUTS: dict[str, Layout | None] = {"original": None, "diffusers": "diffusers"}


def weights_of(control_net: Any, name: str) -> Checkpoint:
    """The weights of a CONTROL_NET of this pack, with the metadata of its file and its settings."""
    if not isinstance(control_net, HostControl):
        raise CldmError(
            f"The {name} control net was loaded by ComfyUI's own loader, and this node works on "
            f"nets for SD 1.5, 2.1 and SDXL: load it with Load ControlNet (CLDM)."
        )
    own = as_checkpoint(control_net.patcher.model, f"The {name} net")
    known = control_net.source.metadata if control_net.source else {}
    return Checkpoint(own.tensors, {**known, **own.metadata}, own.name)


def noted(control_net: HostControl, **share: float) -> dict[str, Any]:
    """What a file that is made of a net says about the net."""
    source = control_net.source
    if source is None:
        return {"name": "a net", **share}
    made_of = sources_in(source.metadata)
    return {"name": source.name, **share, **({"sources": made_of} if made_of else {})}


def made_net(state: dict[str, Any], like: Checkpoint, name: str, **sources: Any) -> HostControl:
    """The CONTROL_NET of new weights with the configuration and the metadata of a given net.

    name: what it is called; sources: what it was made of, which its file will say.
    """
    metadata = {**like.metadata, SOURCES_KEY: json.dumps(sources)}
    return as_control(Checkpoint(state, metadata, name))


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
            **shows_text(),
        )

    @classmethod
    def execute(cls, first: Any, second: Any, ratio: float) -> io.NodeOutput:
        one, other = weights_of(first, "first"), weights_of(second, "second")
        sources = {"first": noted(first, share=1 - ratio), "second": noted(second, share=ratio)}
        result = merged(one, other, ratio)
        like = Checkpoint({}, result.metadata, one.name)
        made = made_net(result.state, like, "a merge", **sources)
        parts = (f"{each['share']:.0%} of {each['name']}" for each in sources.values())
        text = "\n".join(filter(None, (f"{', '.join(parts)}.", pooling_of(made), result.note)))
        return text_result(made, text=text)


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
        state = transfer(net, old, model_weights(target))
        made = made_net(state, net, "a transfer", control=noted(control_net))
        return io.NodeOutput(made)


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
            **shows_text(),
        )

    @classmethod
    def execute(cls, control_net: Any, model: Any, rank: int) -> io.NodeOutput:
        net = weights_of(control_net, "given")
        base = model_weights(model)
        state, report = extract_control_lora(net, base, rank, progress=progress_bar())
        made = made_net(state, net, "a Control-LoRA", control=noted(control_net))
        return text_result(made, str(report), text=str(report))


class SaveControlNet(io.ComfyNode):
    """A net as a file of the host's `controlnet` folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_SaveControlNet",
            display_name="Save ControlNet (CLDM)",
            category=SURGERY,
            description="Writes a control net to models/controlnet as safetensors, with its "
            "configuration and what is known of it inside. A name that is taken gets a number.",
            inputs=[
                net_input("control_net", "The net to save."),
                io.String.Input(
                    "name",
                    default="my_control_net",
                    tooltip="The file's name, without ending; a folder in front is allowed.",
                ),
                io.Combo.Input(
                    "number_type",
                    options=[AS_LOADED, *NAMED_TYPES],
                    default="fp16",
                    tooltip="What the weights are stored in; fp16 is usual, and as loaded is the "
                    "type of the file that the net came from. The 8-bit types take half of fp16's "
                    "space and lose some precision.",
                ),
                io.Combo.Input(
                    "keys",
                    options=[*LAYOUTS],
                    default="original",
                    tooltip="Whose names the weights get: original is what ComfyUI and others "
                    "read; diffusers is for that library. A Control-LoRA keeps its own, with "
                    "original.",
                ),
                io.String.Input(
                    "hint_note",
                    default="",
                    optional=True,
                    tooltip="What the net's hint must be like, noted in the file, such as "
                    "canny edges, white on black. Empty keeps what the net's file says.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file",
                    tooltip="The file's name below models/controlnet, as Load ControlNet takes it.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, control_net: Any, name: str, number_type: str, keys: str, hint_note: str = ""
    ) -> io.NodeOutput:
        net = weights_of(control_net, "given")
        path = new_controlnet_path(name)
        try:
            info = convert(
                net,
                path,
                layout=LAYOUTS[keys],
                dtype=stored_type(control_net, number_type),
                hint=hint_note or None,
            )
        except UnsupportedCheckpoint as error:
            if LAYOUTS[keys] is None:
                raise
            raise UnsupportedCheckpoint(f"{error} In this node that is keys: original.") from error
        file = controlnet_name(path)
        return text_result(file, text=f"Saved as {file}\n{info}")


def stored_type(control_net: HostControl, number_type: str) -> torch.dtype | None:
    """What the weights shall be stored in; None is as they are in memory."""
    if number_type != AS_LOADED:
        return NAMED_TYPES[number_type]
    source = control_net.source
    # Weights of 8 bits with scales were multiplied out when the file was loaded.
    return source.dtype if source and source.dtype.itemsize > 1 else None


def pooling_of(control: HostControl) -> str:
    """Whether a net's residuals are averaged over the picture, in words."""
    return f"Pooling: {'on' if control.pooled else 'off'}."


SURGERY_NODES: list[type[io.ComfyNode]] = [
    MergeControlNets,
    TransferControlNet,
    ExtractControlLora,
    SaveControlNet,
]
