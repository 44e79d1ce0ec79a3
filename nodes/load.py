"""Nodes that load: ControlNets from files, and the embedded model."""

from __future__ import annotations

from pathlib import Path

from comfy_api.v0_0_2 import io

from ..cldm_core import tiny
from .apply import CATEGORY
from .embedded import example_picture, load_clip, load_model, load_vae
from .host import controlnet_files, controlnet_path, load_control

EMBEDDED = {f"embedded: {name}": name for name in tiny.CONTROLS}


class LoadControlNet(io.ComfyNode):
    """A file of the host's `controlnet` folder, or an embedded net, as CONTROL_NET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_LoadControlNet",
            display_name="Load ControlNet (CLDM)",
            category=CATEGORY,
            description="Loads a ControlNet from the folder models/controlnet, or one that comes "
            "with this pack for the "
            "embedded demo model. Its family and settings are read from the file.",
            inputs=[
                io.Combo.Input(
                    "control_net_name",
                    options=[*EMBEDDED, *controlnet_files()],
                    tooltip="A file from models/controlnet, or an embedded net (for Load Tiny "
                    "Demo Model only).",
                )
            ],
            outputs=[
                io.ControlNet.Output(
                    display_name="control_net",
                    tooltip="For Apply ControlNet, this pack's or the host's own.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, control_net_name: str) -> tuple[int, int]:
        """A file that was written anew under its name is loaded anew."""
        found = path_of(control_net_name).stat()
        return found.st_mtime_ns, found.st_size

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_control(path_of(control_net_name)))


def path_of(control_net_name: str) -> Path:
    """The file behind a choice of the node."""
    embedded = EMBEDDED.get(control_net_name)
    return tiny.weights(embedded) if embedded else controlnet_path(control_net_name)


class LoadTinyModel(io.ComfyNode):
    """The embedded model as MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_LoadTinyModel",
            display_name="Load Tiny Demo Model (CLDM)",
            category=CATEGORY,
            description="A small text-to-image model that comes with this pack: emoji of 128x128 "
            "pixels, no download. It "
            "shows how everything fits together; for real pictures load a real checkpoint.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For a sampler; sample pictures of 128x128."
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="For CLIP Text Encode; it knows the names of emoji.",
                ),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode."),
                io.Image.Output(
                    display_name="example",
                    tooltip="A picture to make hints of: a hut, which the model never saw.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_model(), load_clip(), load_vae(), example_picture())
