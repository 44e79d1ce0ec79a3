"""Nodes that show what control nets did: a recorder on the conditioning, and its pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..cldm_core import CldmError
from ..cldm_core.record import ControlRecord
from .host.control import HostControl
from .host.foreign import HostForeign
from .images import to_image, to_pictures
from .texts import CATEGORY, shows_text, text_result

RECORD = "CLDM_RECORD"


class RecordControl(io.ComfyNode):
    """Has the nets on the conditioning tell a record what they add."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_RecordControl",
            display_name="Record Control (CLDM)",
            category=CATEGORY,
            description="Records what each control net adds while the sampler runs, for the "
            "Control Inspector. Put it between the last Apply ControlNet and the sampler; the "
            "picture stays the same. Each sampler needs a record of its own.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt with its controls."),
                io.Conditioning.Input("negative", tooltip="The negative prompt with its controls."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Custom(RECORD).Output(
                    display_name="record", tooltip="For the Control Inspector."
                ),
            ],
            **shows_text(),
        )

    @classmethod
    def execute(cls, positive: list[Any], negative: list[Any]) -> io.NodeOutput:
        record = ControlRecord()
        recorder = Recorder(record)
        sides = [[recorder.entry(entry) for entry in side] for side in (positive, negative)]
        if not recorder.titles:
            raise CldmError(
                "There is no control of this pack on these prompts, and only those are recorded: "
                "put Apply ControlNet (CLDM) in front, with a strength above 0."
            )
        return text_result(*sides, record, text=recorder.text)


class Recorder:
    """Copies conditioning and puts one record on every control of the pack in it."""

    def __init__(self, record: ControlRecord) -> None:
        self.record = record
        self.titles: list[str] = []
        self.others = 0
        # One copy for each control: the host batches rows only of the same object.
        self._copies: dict[int, Any] = {}

    def entry(self, entry: list[Any]) -> list[Any]:
        """One [text, options] entry with copies of its controls."""
        text, options = entry
        control = options.get("control")
        return [text, options if control is None else {**options, "control": self._copy(control)}]

    def _copy(self, control: Any) -> Any:
        if control is None:
            return None
        if id(control) not in self._copies:
            self._copies[id(control)] = self._copied(control)
        return self._copies[id(control)]

    def _copied(self, control: Any) -> Any:
        previous = self._copy(control.previous_controlnet)
        ours = isinstance(control, (HostControl, HostForeign))
        if ours:
            self.titles.append(control.title)
        else:
            self.others += 1
            if previous is control.previous_controlnet:
                return control
        copied = control.copy()
        copied.set_previous_controlnet(previous)
        if ours:
            copied.record = self.record
        return copied

    @property
    def text(self) -> str:
        """What is recorded, and what isn't."""
        lines = [f"recorded: {title}" for title in dict.fromkeys(self.titles)]
        if self.others:
            lines.append(f"not recorded: {self.others} of other nodes")
        return "\n".join(lines)


class ControlInspector(io.ComfyNode):
    """Pictures of a record."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ControlInspector",
            display_name="Control Inspector (CLDM)",
            category=CATEGORY,
            description="Shows where in the picture each block of a control net acted, and how "
            "strongly in each step: brighter is stronger. The plot shows the strength of every "
            "net over the steps.",
            inputs=[
                io.Custom(RECORD).Input("record", tooltip="From Record Control."),
                io.Latent.Input(
                    "latent",
                    tooltip="From the sampler that used the recorded prompts: the inspector then "
                    "runs after it.",
                ),
                io.Int.Input(
                    "net",
                    default=0,
                    min=0,
                    max=99,
                    optional=True,
                    tooltip="Which net the sheet shows where there are several, from 0. The plot "
                    "shows all.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The finished picture or the hint, to be seen on the sheet as well.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet", tooltip="Heat maps by block, top down, and by step."
                ),
                io.Image.Output(display_name="plot", tooltip="Strength over the steps."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        record: ControlRecord,
        latent: dict[str, Any],
        net: int = 0,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        # What draws is imported when it is needed: the start of the host is short.
        from ..cldm_core.sheets import heat_sheet, strength_plot

        picture = None if image is None else to_pictures(image[:1])[0]
        sheets = (heat_sheet(record, picture=picture, net=net), strength_plot(record))
        images = [to_image([sheet]) for sheet in sheets]
        shown = [one for batch in images for one in ui.PreviewImage(batch, cls=cls).values]
        return io.NodeOutput(*images, ui={"images": shown})


INSPECTOR_NODES: list[type[io.ComfyNode]] = [RecordControl, ControlInspector]
