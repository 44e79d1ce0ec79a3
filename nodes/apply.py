"""Nodes that put a ControlNet into a graph: on the conditioning, or on the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..cldm_core import CldmError
from .host.applied import Applied
from .host.checks import check_conditioning
from .host.control import HostControl
from .host.foreign import NO_MASK, HostForeign
from .host.model_door import patch_model
from .host.rows import NEGATIVE, POSITIVE, SIDE
from .host.settings import Settings, mask_of, schedule_of
from .texts import CATEGORY

OPTIONS = "CLDM_CONTROL_OPTIONS"

MODES = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "ControlNet is more important": "control",
}
AS_HOST = "as ComfyUI"
FITS = {"crop": "crop", "stretch": "stretch", "fill": "fill", AS_HOST: "crop"}


def strength_inputs() -> list[io.Input]:
    """How strongly and when: the same three inputs on both nodes."""
    return [
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="How strongly the picture follows the hint: 0 not at all, 1 as trained.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="When the control begins, as a share of the noise schedule: 0 is the first "
            "step.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="When the control ends, as a share of the noise schedule: 1 is the last step.",
        ),
    ]


def mode_inputs() -> list[io.Input]:
    """What weighs more, and how the hint is fitted."""
    return [
        io.Combo.Input(
            "mode",
            options=[*MODES],
            default="balanced",
            optional=True,
            tooltip="balanced: as trained. my prompt is more important: fine details of the hint "
            "weigh less. ControlNet is more important: the same, and the negative prompt goes "
            "without control, which also saves its share of the time.",
        ),
        io.Combo.Input(
            "fit",
            options=[*FITS],
            default="crop",
            optional=True,
            tooltip="How a hint of another shape is fitted. crop: covers the picture, the rest is "
            "cut off. stretch: changes its proportions. fill: all of it is seen, borders are "
            "filled. as ComfyUI: cropped, and enlarged without smoothing; the picture is then bit "
            "for bit that of ComfyUI's own nodes, which takes a little more time.",
        ),
    ]


def shape_inputs() -> list[io.Input]:
    """How it acts over the sampling and over the picture."""
    return [
        io.String.Input(
            "schedule",
            default="",
            optional=True,
            tooltip="Factors of the strength over the sampling, such as 0: 1, 0.5: 0.4, 1: 0. "
            "Behind a pair may stand how it goes on: linear, hold, ease_in, ease_out or cosine. "
            "Numbers alone, as 1, 0.8, 0, are spread evenly. Empty is 1 throughout.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where in the picture the control acts: white fully, black not at all. A "
            "batch gives one mask to each picture.",
        ),
        *mode_inputs(),
        io.Custom(OPTIONS).Input(
            "options",
            optional=True,
            tooltip="From Control Weights, Control Timing or Control Speed, in any order.",
        ),
    ]


def control_input() -> io.Input:
    return io.ControlNet.Input("control_net", tooltip="A ControlNet from Load ControlNet.")


def hint_input() -> io.Input:
    return io.Image.Input(
        "image",
        tooltip="The hint, such as an edge map from Canny. It is fitted to the picture's size; a "
        "batch gives one hint to "
        "each picture.",
    )


def settings_of(
    schedule: str, mask: Tensor | None, mode: str, fit: str, options: Settings | None
) -> Settings:
    """What the inputs of an apply node say, together with the options' nodes."""
    return replace(
        options or Settings(),
        mode=MODES[mode],
        fit=FITS[fit],
        as_host=fit == AS_HOST,
        schedule=schedule_of(schedule),
        mask=mask_of(mask),
    )


def control_for(control_net: Any, settings: Settings, node: str | None) -> Any:
    """A copy of the control with settings; node: the id of the node that shows what was applied."""
    control = control_net.copy()
    if not isinstance(control, HostControl):
        control = HostForeign(control)
    control.settings = settings
    control.applied = Applied(control.title, node)
    control.check_settings()
    return control


def with_hint(
    control: Any,
    image: Tensor,
    strength: float,
    window: tuple[float, float],
    *,
    vae: Any = None,
    mask: Tensor | None = None,
) -> Any:
    """The control with its hint, given as the host's IMAGE (B, H, W, C) in [0, 1].

    vae, mask: for nets of the host's own families whose hint is a latent.
    """
    if window[0] > window[1]:
        raise CldmError(
            f"start_percent is {window[0]:g}, behind end_percent, which is {window[1]:g}: lower "
            f"the first or raise the second."
        )
    hint = image.movedim(-1, 1)
    if mask is None:
        return control.set_cond_hint(hint, strength, window, vae=vae)
    if not isinstance(control, HostForeign):
        raise CldmError(NO_MASK)
    hint, kept = control.with_mask(hint, mask)
    return control.set_cond_hint(hint, strength, window, vae=vae, extra_concat=kept)


def node_id(node: type[io.ComfyNode]) -> str | None:
    """The id of a node that runs in a graph."""
    return node.hidden.unique_id if node.hidden else None


class ApplyControlNet(io.ComfyNode):
    """The conditioning door: works per prompt and with every sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ApplyControlNet",
            display_name="Apply ControlNet (CLDM)",
            category=CATEGORY,
            description="Makes the pictures of these prompts follow a hint. Put it between the "
            "prompts and the sampler; "
            "chain several for several hints.",
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt: what the picture should show."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt: what it should not show."
                ),
                control_input(),
                hint_input(),
                *strength_inputs(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only for nets whose hint is a latent, such as those for SD 3 and "
                    "Flux; nets for SD 1.5, 2.1 and SDXL don't read it.",
                ),
                *shape_inputs(),
                io.Mask.Input(
                    "inpaint_mask",
                    optional=True,
                    tooltip="Only for inpainting nets that read a mask beside the picture, such as "
                    "those for SD 3 and Flux: where to paint. For nets that read marked pixels use "
                    "Inpaint Hint.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # what it gives carries its id
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The prompt with the control on it."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt with the control on it."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: list[Any],
        negative: list[Any],
        control_net: Any,
        image: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Any = None,
        schedule: str = "",
        mask: Tensor | None = None,
        mode: str = "balanced",
        fit: str = "crop",
        options: Settings | None = None,
        inpaint_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        if isinstance(control_net, HostControl):
            check_conditioning(control_net.net, [*positive, *negative])
        settings = settings_of(schedule, mask, mode, fit, options)
        if strength == 0:
            return io.NodeOutput(positive, negative)
        window = (start_percent, end_percent)
        net = control_for(control_net, settings, node_id(cls))
        base = with_hint(net, image, strength, window, vae=vae, mask=mask_of(inpaint_mask))
        # One object for both sides and for each chain before it: the host batches rows only of the
        # same object.
        controls: dict[int, Any] = {}
        return io.NodeOutput(
            *(
                [controlled(entry, base, controls, side) for entry in entries]
                for side, entries in ((POSITIVE, positive), (NEGATIVE, negative))
            )
        )


def controlled(entry: list[Any], base: Any, controls: dict[int, Any], side: str) -> list[Any]:
    """One [text, options] entry with `base` in front of the control that it already has."""
    text, options = entry
    previous = options.get("control")
    if id(previous) not in controls:
        control = base.copy()
        control.set_previous_controlnet(previous)
        controls[id(previous)] = control
    control = controls[id(previous)]
    return [text, {**options, "control": control, "control_apply_to_uncond": False, SIDE: side}]


class PatchModel(io.ComfyNode):
    """The MODEL door: the same control for every prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_PatchModel",
            display_name="Patch Model with ControlNet (CLDM)",
            category=CATEGORY,
            description="Makes every picture of this model follow a hint, whatever its prompts: "
            "for graphs in which the "
            "prompts can't be reached. Apply ControlNet gives the same pictures and can treat "
            "each prompt by itself.",
            inputs=[
                io.Model.Input("model", tooltip="The base model, of the ControlNet's family."),
                control_input(),
                hint_input(),
                *strength_inputs(),
                *shape_inputs(),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # what it gives carries its id
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the control in it.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        control_net: Any,
        image: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        schedule: str = "",
        mask: Tensor | None = None,
        mode: str = "balanced",
        fit: str = "crop",
        options: Settings | None = None,
    ) -> io.NodeOutput:
        if not isinstance(control_net, HostControl):
            raise CldmError(
                "This control net was loaded by ComfyUI's own loader, and only Apply ControlNet "
                "takes such nets: use that, or load the file with Load ControlNet (CLDM) if it is "
                "for SD 1.5, 2.1 or SDXL."
            )
        settings = settings_of(schedule, mask, mode, fit, options)
        window = (start_percent, end_percent)
        net = control_for(control_net, settings, node_id(cls))
        control = with_hint(net, image, strength, window)
        return io.NodeOutput(model if strength == 0 else patch_model(model, control))


APPLY_NODES: list[type[io.ComfyNode]] = [ApplyControlNet, PatchModel]
