"""Nodes that gather, look through and write pairs of picture and hint to train a ControlNet on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..annotators import ANNOTATORS, annotate
from ..cldm_core import CldmError
from ..cldm_core.training.circles import CirclePairs
from ..cldm_core.training.config import CIRCLES
from ..cldm_core.training.dataset_writer import DatasetWriter
from ..cldm_core.training.doctor import check
from ..cldm_core.training.pairs import Pair, held_picture
from ..cldm_core.training.plan import Maker, cut_pair
from ..cldm_core.training.sources import Source, open_source
from .annotate import host_device
from .host.interrupts import Interrupts, Uninterrupted, checked_progress
from .texts import CATEGORY, shows_text, text_result

TRAINING = f"{CATEGORY}/training"
DATASET = "CLDM_DATASET"
GIVEN = "the data's own hints"
DATASETS = "controlnet_datasets"
MAKERS = tuple(name for name, record in ANNOTATORS.items() if not record.needs_mask)
LOOKED_AT = 2000
"""Pairs that the report of a data set is made of."""
SHOWN = 4


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pairs to train on; annotator: makes the hints where it has a name; circles: drawn ones."""

    source: Source
    annotator: str | None = None
    circles: bool = False

    @property
    def maker(self) -> Callable[[Any], Any] | None:
        """From a picture (H, W, 3), uint8 RGB, to its hint."""
        if self.annotator is None:
            return None
        return partial(_hint, self.annotator)


def _hint(name: str, picture: Any) -> Any:
    # No progress bar of its own, which would take the training's place. And no graph: weights that
    # the host loaded can't be trained with.
    with torch.inference_mode():
        return annotate(name, picture, device=host_device())


def to_pictures(image: Tensor) -> list[Any]:
    """The host's IMAGE (B, H, W, C) in [0, 1] as uint8 RGB pictures."""
    scaled = (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [np.ascontiguousarray(one) for one in scaled.cpu().numpy()]


def to_images(pictures: Sequence[Any]) -> Tensor:
    """Pictures of one size as the host's IMAGE."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


def pairs_of(name: str) -> Source:
    """The data set of a whole path, or of a place in the host's input or output folder."""
    given = Path(name).expanduser()
    if given.is_absolute():
        return open_source(given)
    roots = (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    places = [Path(root) / given for root in roots]
    # Shards may be named as pairs-{0000..0099}.tar.
    found = [place for place in places if place.exists() or place.suffix == ".tar"]
    if not found:
        raise CldmError(
            f"There is no data set {name!r}: give a folder, a table or shards by their whole path, "
            f"or by their place in ComfyUI's input or output folder; or {CIRCLES}."
        )
    return open_source(found[0])


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
                    default=128,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of drawn circles, and the size that pairs are looked at for: 128 "
                    "for the embedded model, 512 for SD 1.5, 1024 for SDXL.",
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
    def fingerprint_inputs(cls, data: str | None, **_: Any) -> str:
        """Folders change behind the host's back; None where the name comes from another node."""
        if data is None or data.strip() == CIRCLES:
            return CIRCLES
        try:
            return pairs_of(data.strip()).stamp()
        except CldmError as error:  # told where the node runs
            return str(error)

    @classmethod
    def execute(cls, data: str, annotator: str, circles: int, resolution: int) -> io.NodeOutput:
        drawn = data.strip() == CIRCLES
        source = CirclePairs(circles, resolution) if drawn else pairs_of(data.strip())
        dataset = Dataset(source, None if annotator == GIVEN else annotator, drawn)
        interrupts = Interrupts()
        maker = None
        if dataset.maker is not None and source[0].hint is None:
            maker = Uninterrupted(dataset.maker, interrupts)
        told = checked_progress(interrupts)
        report = check(source, resolution=resolution, hints=maker, limit=LOOKED_AT, progress=told)
        cut = first_pairs(source, resolution, maker)
        if not cut:
            raise CldmError(report.summary())
        pictures, hints = map(to_images, zip(*cut, strict=True))
        return text_result(dataset, pictures, hints, source[0].prompt, text=report.summary())


def first_pairs(source: Source, side: int, maker: Maker | None) -> list[tuple[Any, Any]]:
    """Targets and hints of the first pairs, without those that can't be used."""
    found = []
    for index in range(min(SHOWN, len(source))):
        # What is wrong with them is in the report.
        with suppress(CldmError):
            found.append(cut_pair(source[index], side, maker))
    return found


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
        root = (Path(folder_paths.get_output_directory()) / DATASETS).resolve()
        folder = (root / name.strip()).resolve()
        if folder == root or not folder.is_relative_to(root):
            raise CldmError(f"The data set can't be called {name!r}: give a name, as for a folder.")
        pairs = paired(images, hints, prompts)
        writer = DatasetWriter(folder)
        for pair in pairs:
            writer.add(pair.read_target(), pair.read_hint(), pair.prompt)
        told = f"{len(pairs)} pairs written, {len(writer)} in {DATASETS}/{folder.name}"
        source = open_source(str(folder))
        return text_result(Dataset(source), str(folder), text=told)


def paired(images: Tensor, hints: Tensor, prompts: str) -> list[Pair]:
    """Pairs of the graph's pictures; raises CldmError where their numbers don't fit."""
    targets, sources = to_pictures(images), to_pictures(hints)
    lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
    for count, what in ((len(sources), "hints"), (len(lines), "lines of prompts")):
        if count not in (1, len(targets)):
            raise CldmError(
                f"There are {len(targets)} pictures and {count} {what}: give one for each, or one "
                f"for all."
            )
    return [
        Pair(
            f"image-{index:05d}",
            lines[index % len(lines)],
            held_picture(target, f"image {index}"),
            held_picture(sources[index % len(sources)], f"hint {index}"),
        )
        for index, target in enumerate(targets)
    ]


DATASET_NODES = [ControlDataset, MakeDataset]
