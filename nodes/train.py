"""Nodes that train a ControlNet on the models of the graph, and show how it went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..cldm_core import CldmError
from ..cldm_core.pictures import read_picture
from ..cldm_core.training.config import CIRCLES, TrainConfig
from ..cldm_core.training.history import FILE as HISTORY
from ..cldm_core.training.models import TYPES, unet_type
from ..cldm_core.training.options import parse_yaml
from ..cldm_core.training.reports import PLOT, SHEET
from ..cldm_core.training.scores import score_for
from .dataset import DATASET, TRAINING, Dataset, to_images
from .host.files import load_control
from .host.training import run_folder, train, with_decoder
from .host.training_base import base_of
from .texts import shows_text, text_result

OF_DATASET, OF_GRAPH = "Control Dataset", "what is connected to the node"
ELSEWHERE = {
    **dict.fromkeys(("data", "conditioning", "columns", "circles", "annotator"), OF_DATASET),
    **dict.fromkeys(("base", "tokenizer"), OF_GRAPH),
    "out": "the node's name",
    "device": "ComfyUI",
    "lr": "the node's learning_rate",
}
"""Settings of the command line that mean nothing in the node's box, and what sets them."""


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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Of all that is drawn: the same seed gives the same net.",
                ),
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
        given = {"lr": learning_rate, "out": str(folder), **further(more)}
        config = TrainConfig.of({**settings, **given})
        base = base_of(model, clip, vae, unet_type(config))
        config = replace(config, **facts(dataset, config))
        trained = train(
            base,
            dataset.source,
            replace(config, prediction=config.prediction or base.pipeline.prediction),
            annotator=dataset.maker,
            name=name,
            node=cls.hidden.unique_id if cls.hidden else None,
            resume=resume,
        )
        control = load_control(trained.net).control
        patched = model if trained.unet is None else with_decoder(model, trained.unet)
        pictures = run_pictures(trained.folder)
        return text_result(control, patched, *pictures, str(trained.folder), text=trained.text)


def further(more: str) -> dict[str, Any]:
    """The settings of the box `more`; raises CldmError for those that come from elsewhere."""
    given = parse_yaml(more, "more")
    for name in given:
        if name in ELSEWHERE:
            raise CldmError(f"more: {name} is set by {ELSEWHERE[name]}, not here: remove the line.")
    return given


def facts(dataset: Dataset, config: TrainConfig) -> dict[str, str]:
    """What the data set says of a run: whose discs are scored, and how."""
    drawn = dataset.circles and dataset.annotator is None
    told = {"data": CIRCLES if drawn else "the graph's"}
    if config.score is None and config.evaluate_every and dataset.annotator is not None:
        told["score"] = score_for(f"annotators:{dataset.annotator}").name
    return told


def run_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Plot and samples of a run; black where there are none yet."""
    places = (folder / PLOT, folder / SHEET)
    return tuple(  # type: ignore[return-value]
        to_images([read_picture(place)]) if place.exists() else torch.zeros(1, 64, 64, 3)
        for place in places
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
                io.Image.Output(display_name="plot", tooltip="Loss, score and norms over the run."),
                io.Image.Output(display_name="samples", tooltip="Held-out hints over the run."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str | None) -> tuple[int, ...]:
        """A run goes on; None where its name comes from another node."""
        if run is None:
            return ()
        files = (_run(run) / place for place in (PLOT, SHEET))
        return tuple(file.stat().st_mtime_ns for file in files if file.exists())

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        folder = _run(run)
        if not (folder / HISTORY).exists():
            raise CldmError(
                f"There is no training run in {folder}: give the folder of one, or the name that "
                f"it has in Train ControlNet."
            )
        return io.NodeOutput(*run_pictures(folder))


def _run(name: str) -> Path:
    given = Path(name.strip()).expanduser()
    return given if given.is_absolute() else run_folder(name, resume=True)


TRAINING_NODES = [TrainControlNet, LossPlot]
