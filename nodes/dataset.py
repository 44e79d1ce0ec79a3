"""Nodes that gather, look through and write pairs of picture and hint to train a ControlNet on.

What they do is imported when they run: few graphs train, and the start of the host is short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..annotators import ANNOTATORS, annotate
from ..cldm_core import CldmError
from .annotate import host_device
from .texts import CATEGORY, shows_text, text_result

if TYPE_CHECKING:
    from ..cldm_core.training.sources import Source

TRAINING = f"{CATEGORY}/training"
DATASET = "CLDM_DATASET"
GIVEN = "the data's own hints"
CIRCLES = "circles"
DATASETS = "controlnet_datasets"
MAKERS = tuple(name for name, record in ANNOTATORS.items() if not record.needs_mask)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pairs to train on; annotator: makes the hints where it has a name; circles: drawn ones.

    side: of the squares, in pixels, that the report is for.
    """

    source: Source
    annotator: str | None = None
    circles: bool = False
    side: int | None = None

    def source_at(self, side: int) -> Source:
        """The pairs for a run with squares of this side: circles are drawn as large."""
        from .host.training_data import draw_circles

        return draw_circles(len(self.source), side) if self.circles else self.source

    @property
    def maker(self) -> Callable[[Any], Any] | None:
        """From a picture (H, W, 3), uint8 RGB, to its hint."""
        if self.annotator is None:
            return None
        from ..cldm_core.training.made_hints import maker_key

        made = partial(_hint, self.annotator)
        # By the annotator's settings and weights too: its name alone would find hints of others.
        made.key = maker_key(ANNOTATORS[self.annotator])  # type: ignore[attr-defined]
        return made


def _hint(name: str, picture: Any) -> Any:
    # No progress bar of its own, which would take the training's place. And no graph: weights that
    # the host loaded can't be trained with.
    with torch.inference_mode():
        return annotate(name, picture, device=host_device())


def advanced(field: io.Input) -> io.Input:
    """An input that editors hide at first, where they can; it may be missing, as in older prompts.

    Newer hosts have a word for it, which older ones refuse.
    """
    field.optional = True
    field.extra_dict["advanced"] = True
    return field


class ControlDataset(io.ComfyNode):
    """Pairs of picture and hint, looked through before anything is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_ControlDataset",
            display_name="Control Dataset (CLDM)",
            category=TRAINING,
            description="Pairs of a picture and a hint, with prompts, to train a ControlNet on: a "
            "folder of pictures, a prompt.json, a Hugging Face image folder, webdataset shards, or "
            "drawn circles to rehearse with. The node says what is wrong with them.",
            inputs=[
                io.String.Input(
                    "data",
                    default=CIRCLES,
                    tooltip="Where the pairs are: a whole path, or a place in ComfyUI's input or "
                    "output folder. circles draws pairs of an outline and a filled disc.",
                ),
                io.Combo.Input(
                    "annotator",
                    options=[GIVEN, *MAKERS],
                    default=GIVEN,
                    tooltip="What makes the hints of pairs without one; it also scores how well "
                    "the trained net follows.",
                ),
                io.Int.Input(
                    "circles",
                    default=2000,
                    min=32,
                    max=1_000_000,
                    tooltip="How many circles are drawn, where data is circles.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the squares that pairs are looked at and shown as: 512 for "
                    "SD 1.5, 768 for SD 2.1, 1024 for SDXL, 128 for the embedded model. What is "
                    "trained at is Train ControlNet's: circles are drawn as large for it.",
                ),
                advanced(
                    io.String.Input(
                        "conditioning",
                        default="",
                        tooltip="The folder of the hints, where data is a folder of pictures; "
                        "empty takes conditioning, hints or source in it or beside it.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "columns",
                        default="",
                        tooltip="What a table's columns are called, where data has one, such as "
                        "hint=edges,prompt=caption; empty takes the usual names.",
                    )
                ),
            ],
            outputs=[
                io.Custom(DATASET).Output(display_name="dataset", tooltip="For Train ControlNet."),
                io.Image.Output(
                    display_name="pictures", tooltip="Of the first pairs, as they are trained on."
                ),
                io.Image.Output(display_name="hints", tooltip="Theirs."),
                io.String.Output(display_name="prompt", tooltip="Of the first pair."),
            ],
            is_output_node=True,
            **shows_text(),
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        data: str | None,
        conditioning: str | None = "",
        columns: str | None = "",
        **_: Any,
    ) -> str:
        """Folders change behind the host's back; None where a text comes from another node."""
        if data is None or data.strip() == CIRCLES:
            return CIRCLES
        from .host.training_data import data_stamp

        try:
            return data_stamp(data, conditioning or "", columns or "")
        except CldmError as error:  # told where the node runs
            return str(error)

    @classmethod
    def execute(
        cls,
        data: str,
        annotator: str,
        circles: int,
        resolution: int,
        conditioning: str = "",
        columns: str = "",
    ) -> io.NodeOutput:
        from .host.training_data import draw_circles, look_through, open_pairs

        drawn = data.strip() == CIRCLES
        if drawn:
            source = draw_circles(circles, resolution)
        else:
            source = open_pairs(data, conditioning, columns)
        dataset = Dataset(source, None if annotator == GIVEN else annotator, drawn, resolution)
        report, pictures, hints = look_through(source, dataset.maker, resolution)
        return text_result(dataset, pictures, hints, source[0].prompt, text=report)


class MakeDataset(io.ComfyNode):
    """Pictures of the graph as pairs, written to disk for any trainer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_MakeDataset",
            display_name="Make Dataset (CLDM)",
            category=TRAINING,
            description="Writes pictures with their hints and prompts as a data set, which this "
            "pack's trainer, that of diffusers (metadata.jsonl) and the original (prompt.json) "
            "read. Run the graph again, with other seeds, and the set grows.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures, such as those of a sampler."),
                io.Image.Input("hints", tooltip="Their hints: one for each, or one for all."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="Their prompts: a line for each, or one line for all.",
                ),
                io.String.Input(
                    "name",
                    default="my_pairs",
                    tooltip=f"The folder, below {DATASETS} in ComfyUI's output folder. What is in "
                    "it already stays.",
                ),
            ],
            outputs=[
                io.Custom(DATASET).Output(
                    display_name="dataset", tooltip="All pairs of the folder, for Train ControlNet."
                ),
                io.String.Output(display_name="folder", tooltip="Where the pairs are."),
            ],
            is_output_node=True,
            **shows_text(),
        )

    @classmethod
    def execute(cls, images: Tensor, hints: Tensor, prompts: str, name: str) -> io.NodeOutput:
        from .host.training_data import output_folder, write_pairs

        folder = output_folder(DATASETS, name)
        count, source = write_pairs(images, hints, prompts, folder)
        told = f"{count} pairs written, {len(source)} in {DATASETS}/{folder.name}"
        return text_result(Dataset(source), str(folder), text=told)


DATASET_NODES: list[type[io.ComfyNode]] = [ControlDataset, MakeDataset]
