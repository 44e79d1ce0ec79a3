"""Nodes that train a ControlNet on the models of the graph, and make the data for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ..cldm_core.pictures import read_picture
from ..cldm_core.training.circles import CirclePairs
from ..cldm_core.training.config import CIRCLES, TrainConfig
from ..cldm_core.training.dataset_writer import DatasetWriter
from ..cldm_core.training.doctor import check
from ..cldm_core.training.models import TYPES, unet_type
from ..cldm_core.training.options import parse_yaml
from ..cldm_core.training.pairs import Pair, held_picture
from ..cldm_core.training.reports import PLOT, SHEET
from ..cldm_core.training.scores import score_for
from ..cldm_core.training.sources import Source, open_source
from .annotate import host_device, host_progress
from .host.files import load_control
from .host.training import base_of, run_folder, train, with_decoder
from .texts import CATEGORY, shows_text, text_result

TRAINING = f"{CATEGORY}/training"
DATASET = "CLDM_DATASET"
GIVEN = "the data's own hints"
DATASETS = "controlnet_datasets"
MAKERS = tuple(name for name, record in ANNOTATORS.items() if not record.needs_mask)
LOOKED_AT = 2000
"""Pairs that the report of a data set is made of."""


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
    with host_progress():
        return annotate(name, picture, device=host_device())


def to_pictures(image: Tensor) -> list[Any]:
    """The host's IMAGE (B, H, W, C) in [0, 1] as uint8 RGB pictures."""
    scaled = (image[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [np.ascontiguousarray(one) for one in scaled.cpu().numpy()]


def to_image(path: Path) -> Tensor:
    """A picture's file as the host's IMAGE."""
    return torch.from_numpy(read_picture(path).astype(np.float32) / 255)[None]


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
                io.String.Output(display_name="report", tooltip="What was found."),
            ],
            is_output_node=True,
            **shows_text(),
        )

    @classmethod
    def fingerprint_inputs(cls, data: str, **_: Any) -> str:
        """Folders change behind the host's back."""
        if data.strip() == CIRCLES:
            return CIRCLES
        return pairs_of(data.strip()).stamp()

    @classmethod
    def execute(cls, data: str, annotator: str, circles: int, resolution: int) -> io.NodeOutput:
        drawn = data.strip() == CIRCLES
        source = CirclePairs(circles, resolution) if drawn else pairs_of(data.strip())
        dataset = Dataset(source, None if annotator == GIVEN else annotator, drawn)
        maker = dataset.maker if source[0].hint is None else None
        report = check(source, resolution=resolution, hints=maker, limit=LOOKED_AT).summary()
        return text_result(dataset, report, text=report)


class ImagesToDataset(io.ComfyNode):
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


class TrainControlNet(io.ComfyNode):
    """Trains a net on the graph's model; the node shows loss, score and samples meanwhile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_TrainControlNet",
            display_name="Train ControlNet (CLDM)",
            category=TRAINING,
            description="Trains a ControlNet for this model and puts it into models/controlnet, "
            "ready to use. An interrupt saves the run: queue it again with resume. Copies the "
            "model's UNet, as a node's weights can't be trained with.",
            inputs=[
                io.Model.Input("model", tooltip="The base that the net is for."),
                io.Clip.Input("clip", tooltip="Reads the prompts."),
                io.Vae.Input("vae", tooltip="Encodes the pictures."),
                io.Custom(DATASET).Input("dataset", tooltip="Of Control Dataset."),
                io.String.Input(
                    "name", default="my_controlnet", tooltip="The run's, and the net's file's."
                ),
                io.Combo.Input(
                    "kind",
                    options=["controlnet", "control_lora", "lllite"],
                    default="controlnet",
                    tooltip="controlnet: the whole net. control_lora: small, upon this base. "
                    "lllite: the smallest, by attention.",
                ),
                io.Int.Input(
                    "resolution",
                    default=128,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the squares that are trained on: 128 for the embedded model, "
                    "512 for SD 1.5, 768 for SD 2.1, 1024 for SDXL.",
                ),
                io.Int.Input(
                    "steps",
                    default=1000,
                    min=1,
                    max=10_000_000,
                    tooltip="Nets for SD 1.5 converge within 3,000 to 7,000 steps, all at once.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=1024, tooltip="Pairs in a step."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-5,
                    min=1e-8,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="1e-5 for large models, 1e-4 for the embedded one.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[*TYPES],
                    default="fp32",
                    tooltip="What is computed in; bf16 on GPUs that know it.",
                ),
                io.Int.Input(
                    "evaluate_every",
                    default=250,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps between samples of hints that aren't trained on; 0 takes none.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=False),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="Go on with the run of this name, where there is one.",
                ),
                io.String.Input(
                    "more",
                    multiline=True,
                    default="",
                    tooltip="Further settings, as in the file of the command line: one NAME: VALUE "
                    "in a line, such as accumulation: 4, sd_locked: false or min_snr: 5.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(display_name="control_net", tooltip="The trained net."),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model; with sd_locked: false its decoder is the trained one.",
                ),
                io.Image.Output(display_name="plot", tooltip="Loss, score and norms over the run."),
                io.Image.Output(display_name="samples", tooltip="Held-out hints over the run."),
                io.String.Output(display_name="run", tooltip="The run's folder, for Loss Plot."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            **shows_text(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Dataset,
        name: str,
        learning_rate: float,
        resume: bool,
        more: str,
        **settings: Any,
    ) -> io.NodeOutput:
        folder = run_folder(name, resume=resume)
        given = {"lr": learning_rate, "out": str(folder), **parse_yaml(more, "more")}
        config = TrainConfig.of({**settings, **given})
        base = base_of(model, clip, vae, unet_type(config))
        facts = {"data": CIRCLES if dataset.circles else "the graph's"}
        if config.score is None and dataset.annotator is not None:
            facts["score"] = score_for(f"annotators:{dataset.annotator}").name
        trained = train(
            base,
            dataset.source,
            replace(config, prediction=config.prediction or base.pipeline.prediction, **facts),
            annotator=dataset.maker,
            name=name,
            node=cls.hidden.unique_id,
            resume=resume,
        )
        control = load_control(trained.net).control
        patched = model if trained.unet is None else with_decoder(model, trained.unet)
        pictures = run_pictures(trained.folder)
        return text_result(control, patched, *pictures, str(trained.folder), text=trained.text)


def run_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Plot and samples of a run; black where there are none yet."""
    places = (folder / PLOT, folder / SHEET)
    return tuple(  # type: ignore[return-value]
        to_image(place) if place.exists() else torch.zeros(1, 64, 64, 3) for place in places
    )


class LossPlot(io.ComfyNode):
    """The curves of a run, also of one that still goes on elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLDM_LossPlot",
            display_name="Loss Plot (CLDM)",
            category=TRAINING,
            description="Plot and samples of a training run, of Train ControlNet or of the command "
            "line. Loss alone doesn't tell whether a ControlNet has converged: its score does.",
            inputs=[
                io.String.Input(
                    "run",
                    default="my_controlnet",
                    tooltip="The run's folder, or its name in Train ControlNet.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.Image.Output(display_name="samples"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str) -> tuple[int, ...]:
        """A run goes on."""
        files = (_run(run) / place for place in (PLOT, SHEET))
        return tuple(file.stat().st_mtime_ns for file in files if file.exists())

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        folder = _run(run)
        if not (folder / PLOT).exists():
            raise CldmError(
                f"There is no run with a plot in {folder}: give the folder of a training run."
            )
        return io.NodeOutput(*run_pictures(folder))


def _run(name: str) -> Path:
    given = Path(name.strip()).expanduser()
    return given if given.is_absolute() else run_folder(name, resume=True)


TRAINING_NODES = [ControlDataset, ImagesToDataset, TrainControlNet, LossPlot]
