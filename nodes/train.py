"""Nodes that train a ControlNet on the models of the graph, and show how it went.

What they do is imported when they run: few graphs train, and the start of the host is short.
"""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from .dataset import DATASET, TRAINING, Dataset
from .host.files import load_control
from .texts import shows_text, text_result


def run_outputs() -> list[io.Output]:
    """The pictures of a run."""
    return [
        io.Image.Output(display_name="plot", tooltip="Loss, score and norms over the run."),
        io.Image.Output(display_name="samples", tooltip="Held-out hints over the run."),
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
                    default=0,
                    min=0,
                    max=2048,
                    step=8,
                    tooltip="Side of the squares that are trained on, in pixels. 0 takes the "
                    "model's own: 512 for SD 1.5, 768 for SD 2.1, 1024 for SDXL, 128 for the "
                    "embedded model.",
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
                    tooltip="1e-5 for large models, 6e-4 to 2e-3 for the embedded one.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["fp32", "bf16", "fp16"],
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
                    "in a line, such as accumulation: 4, sd_locked: false or min_snr: 5. "
                    "init: FILE goes on from a net in models/controlnet.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(display_name="control_net", tooltip="The trained net."),
                io.Model.Output(
                    display_name="model",
                    tooltip="The model; with sd_locked: false its decoder is the trained one. "
                    "Its UNet is then in models/diffusion_models too, for Load Diffusion Model.",
                ),
                *run_outputs(),
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
        resolution: int,
        learning_rate: float,
        resume: bool,
        more: str,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..cldm_core.training.models import loaded_type
        from .host.model_keys import base_name
        from .host.training import train, with_decoder
        from .host.training_base import base_of, for_base
        from .host.training_runs import run_folder, run_pictures
        from .host.training_settings import config_of

        settings |= {"resolution": resolution or None, "lr": learning_rate}
        settings["out"] = str(run_folder(name, resume=resume))
        config = config_of(
            settings,
            more,
            base=base_name(model),
            circles=dataset.circles,
            annotator=dataset.annotator,
        )
        base = base_of(model, clip, vae, loaded_type(config))
        trained = train(
            base,
            dataset,
            for_base(config, base),
            name=name,
            node=cls.hidden.unique_id if cls.hidden else None,
            resume=resume,
        )
        control = load_control(trained.net).control
        patched = model if trained.unet is None else with_decoder(model, trained.unet)
        pictures = run_pictures(trained.folder)
        return text_result(control, patched, *pictures, str(trained.folder), text=trained.text)


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
            outputs=run_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, run: str | None) -> tuple[int, ...]:
        """A run goes on; None where its name comes from another node."""
        if run is None:
            return ()
        from .host.training_runs import named_run, run_stamp

        return run_stamp(named_run(run))

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        from .host.training_runs import named_run, require_run, run_pictures

        folder = named_run(run)
        require_run(folder)
        return io.NodeOutput(*run_pictures(folder))


TRAINING_NODES: list[type[io.ComfyNode]] = [TrainControlNet, LossPlot]
