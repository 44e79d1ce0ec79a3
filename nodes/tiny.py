"""The node for the embedded demo model."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from .host.embedded import example_picture, load_clip, load_model, load_vae
from .texts import CATEGORY


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


TINY_NODES: list[type[io.ComfyNode]] = [LoadTinyModel]
