"""Nodes that load control nets from files, and tell what a file holds."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.v0_0_2 import io

from ..cldm_core import inspect_checkpoint, tiny
from .host.files import controlnet_files, controlnet_path, load_control
from .texts import CATEGORY, shows_text, text_result

EMBEDDED = {f"embedded: {name}": name for name in tiny.CONTROLS}
POOLING = {"auto": None, "on": True, "off": False}
PRECISIONS = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def file_input() -> io.Input:
    """A choice of the files with control nets."""
    return io.Combo.Input(
        "control_net_name",
        options=[*EMBEDDED, *controlnet_files()],
        display_name="file",
        tooltip="A file from models/controlnet, or an embedded net (for Load Tiny Demo Model "
        "only).",
    )


def path_of(control_net_name: str) -> Path:
    """The file behind a choice of the node."""
    embedded = EMBEDDED.get(control_net_name)
    return tiny.weights(embedded) if embedded else controlnet_path(control_net_name)


def fingerprint(control_net_name: str) -> tuple[int, int]:
    """Changes where a file was written anew under its name."""
    found = path_of(control_net_name).stat()
    return found.st_mtime_ns, found.st_size


class LoadControlNet(io.ComfyNode):
    """A file of the host's `controlnet` folder, or an embedded net, as CONTROL_NET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_LoadControlNet",
            display_name="Load ControlNet (CLDM)",
            category=CATEGORY,
            description="Loads a control net from the folder models/controlnet, or one that comes "
            "with this pack for the embedded demo model: ControlNet, union, Control-LoRA, "
            "difference, T2I-Adapter and ControlNet-LLLite for SD 1.5, 2.1 and SDXL, and whatever "
            "ComfyUI's own loader takes. The family is told from the file and shown here.",
            inputs=[
                file_input(),
                io.Combo.Input(
                    "pooling",
                    options=[*POOLING],
                    default="auto",
                    tooltip="Whether the net's effect is averaged over the picture, as the shuffle "
                    "net wants. auto takes what the file says, else goes by a name that ends in "
                    "_shuffle, and shows what it took.",
                    optional=True,
                ),
                io.Int.Input(
                    "head_channels",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Channels of an attention head, for nets of unusual width. 0 takes "
                    "what the file says, else the family's rule.",
                    optional=True,
                ),
                io.Combo.Input(
                    "precision",
                    options=[*PRECISIONS],
                    default="auto",
                    tooltip="In what the net is kept and computed. auto is as ComfyUI does it, and "
                    "exact. On a processor that computes bf16, bf16 takes about half of the time "
                    "and memory and changes pictures a little.",
                    optional=True,
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net",
                    tooltip="For Apply ControlNet, this pack's or the host's own.",
                ),
                io.String.Output(
                    display_name="info", tooltip="What was loaded: family, keys, type, size."
                ),
            ],
            **shows_text(),
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        control_net_name: str,
        pooling: str = "auto",
        head_channels: int = 0,
        precision: str = "auto",
    ) -> tuple[int, int]:
        """A file that was written anew under its name is loaded anew."""
        return fingerprint(control_net_name)

    @classmethod
    def execute(
        cls,
        control_net_name: str,
        pooling: str = "auto",
        head_channels: int = 0,
        precision: str = "auto",
    ) -> io.NodeOutput:
        path = path_of(control_net_name)
        loaded = load_control(
            path,
            pooling=POOLING[pooling],
            head_channels=head_channels or None,
            precision=PRECISIONS[precision],
        )
        info = "\n".join((str(inspect_checkpoint(path)), *loaded.notes))
        return text_result(loaded.control, info, text=info, choice=control_net_name)


class InspectControlNet(io.ComfyNode):
    """What a file holds, without loading it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_InspectControlNet",
            display_name="Inspect ControlNet File (CLDM)",
            category=CATEGORY,
            description="Shows what a control net's file holds, in milliseconds and without "
            "loading it: family, keys, hint, control types, pooling, number type, size, and what "
            "is missing or left over.",
            inputs=[file_input()],
            outputs=[io.String.Output(display_name="info", tooltip="What the node shows.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str) -> tuple[int, int]:
        """A file that was written anew under its name is read anew."""
        return fingerprint(control_net_name)

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        info = inspect_checkpoint(path_of(control_net_name)).details()
        return text_result(info, text=info, choice=control_net_name)


LOAD_NODES: list[type[io.ComfyNode]] = [LoadControlNet, InspectControlNet]
