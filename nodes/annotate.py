"""One node for each annotator, made from its record, and one for any of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from .. import annotators
from ..annotators import ANNOTATORS, GROUPS, Annotator, annotate, weights
from ..annotators.settings import Choice, Flag, Param, Setting, Value, example, from_text
from .contract import ANNOTATORS_HOST, CONTROL, lacking
from .images import to_floats, to_image
from .log import log
from .texts import CATEGORY, shows_text, text_result

ANNOTATE = f"{CATEGORY}/annotators"
RESOLUTION = "resolution"
DEFAULT = -1
"""Of Annotate's resolution: the annotator's own default."""


@cache
def _managed() -> bool:
    """Joins the annotators to the host, once; False where this host lacks what that needs."""
    missing = lacking((*CONTROL, *ANNOTATORS_HOST))
    if missing:
        log.warning(
            "This version of ComfyUI lacks %s: annotators work, but without its progress bar and "
            "its memory manager.",
            ", ".join(missing),
        )
        return False
    from .host.annotators import connect

    connect()
    return True


def host_progress() -> AbstractContextManager[None]:
    """Progress in the node and interrupts, where the host has them."""
    if not _managed():
        return nullcontext()
    from .host.annotators import told

    return told()


def host_device() -> Any:
    """Where the host computes, for packages that would choose by themselves."""
    if not _managed():
        return None
    from .host.annotators import device

    return device()


def annotated(
    annotator: Annotator, image: Tensor, *, mask: Tensor | None = None, **params: Value
) -> Tensor:
    """The hints of the host's IMAGE (B, H, W, C) in [0, 1], as IMAGE."""
    pictures, masks = to_floats(image), None if mask is None else to_floats(mask)
    with host_progress():
        hints = annotate(annotator.name, pictures, mask=masks, device=host_device(), **params)
    return to_image(hints) if hints.dtype == np.uint8 else torch.from_numpy(hints)


def setting_input(name: str, setting: Setting) -> io.Input:
    """The field of one setting; a resolution may be missing, as in prompts older than it."""
    about: dict[str, Any] = {"tooltip": setting.help[0].upper() + setting.help[1:] + "."}
    if name == RESOLUTION:
        about["optional"] = True
    about["default"] = setting.default
    if isinstance(setting, Choice):
        return io.Combo.Input(name, options=[*setting.choices], **about)
    if isinstance(setting, Flag):
        return io.Boolean.Input(name, **about)
    assert isinstance(setting, Param)
    about |= {"min": setting.min, "max": setting.max}
    if setting.whole:
        return io.Int.Input(name, **about, step=int(setting.step or 1))
    return io.Float.Input(name, **about, step=setting.step or 0.01)


def node_name(annotator: Annotator) -> str:
    """scribble_xdog: ScribbleXdog."""
    return "".join(word.capitalize() for word in annotator.name.split("_"))


def is_limited(annotator: Annotator) -> bool:
    """Whether some of its weights are not for commercial use."""
    return any(not one.commercial for one in annotator.weights)


def described(annotator: Annotator) -> str:
    """What the annotator makes, and which files limit its use, or are switched off for that."""
    if not is_limited(annotator) or not weights.commercial_only():
        return annotator.about
    return f"{annotator.about} Switched off here, by {weights.COMMERCIAL_VARIABLE}."


def image_input() -> io.Input:
    return io.Image.Input("image", tooltip="The pictures to make hints of.")


def hint_output() -> io.Output:
    return io.Image.Output(display_name="hint", tooltip="The hints, for Apply ControlNet.")


def make_node(annotator: Annotator, group: str) -> type[io.ComfyNode]:
    """The node class of one record, in the menu of its group."""
    mask = io.Mask.Input("mask", tooltip="White where the annotator has to act, above 0.5.")

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        return io.Schema(
            node_id=f"CLDM_{node_name(annotator)}",
            display_name=f"{annotator.title} (CLDM)",
            category=f"{ANNOTATE}/{group}",
            description=described(annotator),
            inputs=[
                image_input(),
                *([mask] if annotator.needs_mask else []),
                *(setting_input(*setting) for setting in annotator.settings.items()),
            ],
            outputs=[hint_output()],
        )

    def execute(cls: type[io.ComfyNode], image: Tensor, **params: Any) -> io.NodeOutput:
        return io.NodeOutput(annotated(annotator, image, **params))

    members = {
        "__doc__": annotator.description,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    return type(f"{node_name(annotator)}Node", (io.ComfyNode,), members)


class Annotate(io.ComfyNode):
    """Any annotator by name; the node shows what can be set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_Annotate",
            display_name="Annotate (CLDM)",
            category=ANNOTATE,
            description="Makes hints with any annotator, chosen by name. The tooltip of settings "
            "lists what each can be told; after a run the node shows it with its meaning and "
            "range, and what the annotator was told.",
            inputs=[
                image_input(),
                io.Combo.Input(
                    "annotator",
                    options=[*ANNOTATORS],
                    default=next(iter(ANNOTATORS)),
                    tooltip="What to make of the pictures.",
                ),
                io.Int.Input(
                    RESOLUTION,
                    default=DEFAULT,
                    min=DEFAULT,
                    max=16384,
                    tooltip="Short side of the picture that is worked on and of the hint. 0: as it "
                    "is; -1: what the annotator has by itself.",
                ),
                io.String.Input(
                    "settings",
                    default="",
                    multiline=True,
                    tooltip="What else to tell the annotator: low_threshold: 50, high_threshold: "
                    f"120. Empty leaves all as it is:\n{every_default()}",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="For annotators that need one, as inpaint."
                ),
            ],
            outputs=[hint_output()],
            is_output_node=False,
            **shows_text(),
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        annotator: str,
        resolution: int,
        settings: str,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        chosen = annotators.get(annotator)
        told = from_text(chosen.name, chosen.settings, settings)
        if resolution != DEFAULT:
            told[RESOLUTION] = resolution
        masks = mask if chosen.needs_mask else None
        hints = annotated(chosen, image, mask=masks, **told)
        return text_result(hints, text=manual(chosen, told))


def every_default() -> str:
    """The settings of all annotators but the resolution, alike ones together, line by line."""
    alike: dict[str, list[str]] = {}
    for annotator in ANNOTATORS.values():
        settings = ", ".join(in_short(*setting) for setting in annotator.params.items())
        if settings:
            alike.setdefault(settings, []).append(annotator.name)
    return "\n".join(f"{', '.join(names)} - {settings}" for settings, names in alike.items())


def in_short(name: str, setting: Setting) -> str:
    """Name and default, and what else can be chosen."""
    default = setting.default
    if isinstance(setting, Choice):
        return f"{name}: {default} ({', '.join(setting.choices)})"
    return f"{name}: {round(default, 3) if isinstance(default, float) else default}"


def manual(annotator: Annotator, told: Mapping[str, Value]) -> str:
    """What an annotator makes, what it can be told, and what it was told."""
    lines = [described(annotator)]
    for name, setting in annotator.settings.items():
        scope = f", {setting.min} to {setting.max}" if isinstance(setting, Param) else ""
        if isinstance(setting, Choice):
            scope = f", one of {', '.join(setting.choices)}"
        value = told.get(name, setting.default)
        lines.append(f"{name}: {value} ({setting.help}{scope})")
    lines.append(f"To copy: {example(annotator.settings)}")
    return "\n".join(lines)


ANNOTATOR_NODES: list[type[io.ComfyNode]] = [
    Annotate,
    *(make_node(annotator, group) for group, records in GROUPS.items() for annotator in records),
]
