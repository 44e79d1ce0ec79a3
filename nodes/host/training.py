"""A training run that a node starts: what the node shows meanwhile, and the net of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...cldm_core import CldmError
from ...cldm_core.checkpoint import read
from ...cldm_core.checkpoint.read import read_header
from ...cldm_core.training.config import TrainConfig
from ...cldm_core.training.convergence import find
from ...cldm_core.training.evaluate import Evaluation
from ...cldm_core.training.loop import Fitted, fit
from ...cldm_core.training.models import Base
from ...cldm_core.training.plan import Plan, plan_of
from ...cldm_core.training.reports import Reports
from ...cldm_core.training.saving import TRAINING_KEY
from ...cldm_core.training.session import require_accelerator
from ...cldm_core.whole_files import whole_file
from .applied import show_text
from .files import new_controlnet_path, new_model_path
from .interrupts import Interrupts, Uninterrupted, checked_progress
from .training_base import own_side
from .training_runs import run_folder, run_name

if TYPE_CHECKING:
    from ..dataset import Dataset

PREVIEW = 512


class NodeReports(Reports):
    """The record of a run that its node shows: numbers as text, and the last samples.

    interrupts: ends none of them.
    """

    def __init__(self, folder: Path, plan: Plan, node: str | None, interrupts: Interrupts) -> None:
        held_out = plan.evaluator.held_out if plan.evaluator else ()
        super().__init__(folder, held_out, tensorboard=plan.config.tensorboard)
        self._interrupts = interrupts
        self._bar = comfy.utils.ProgressBar(plan.config.steps)
        self._steps, self._node = plan.config.steps, node
        self._lines = {"loss": "", "score": "", "convergence": ""}
        self._evaluated: int | None = None

    def note(self, step: int, **numbers: Any) -> None:
        super().note(step, **numbers)
        if "loss" in numbers:
            self._lines["loss"] = (
                f"Step {step} of {self._steps}: loss {numbers['loss']:.4f}, learning rate "
                f"{numbers['lr']:.3g}, {numbers['seconds_per_step']:.2f} s a step."
            )
            show_text(self._node, self.text)
        if "adherence" in numbers:
            self._evaluated = step

    @property
    def text(self) -> str:
        """What the node shows."""
        return "\n".join(filter(None, self._lines.values()))

    def say(self, sentence: str) -> None:
        """Shows a sentence, such as that the net has converged.

        Of the scores the last one stays, and the last of what is said of convergence.
        """
        kind = sentence
        if sentence.startswith(f"Step {self._evaluated}:"):
            kind = "score"
        elif sentence == str(find(self)):
            kind = "convergence"
        self._lines[kind] = sentence
        show_text(self._node, self.text)

    def show(self, evaluation: Evaluation) -> None:
        _unload()
        super().show(evaluation)
        if evaluation.pictures:
            preview = ("JPEG", Image.fromarray(evaluation.pictures[0]), PREVIEW)
            self._shown(self._bar.current, self._steps, preview)

    def plot(self) -> None:
        """Draws the plot, or says why it can't be drawn: a run goes on without."""
        try:
            super().plot()
        except CldmError as error:
            self.say(str(error))

    def advance(self, step: int, steps: int) -> None:
        """For `fit`: a step is done."""
        self._shown(step, steps)

    def _shown(self, step: int, steps: int, preview: tuple[str, Any, int] | None = None) -> None:
        """Moves the bar; the host keeps a preview until the next one comes."""
        self._interrupts.through(self._bar.update_absolute, step, steps, preview)


def _unload() -> None:
    """Has the host give the GPU's memory back; what is needed again it loads again."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


@dataclass(frozen=True)
class Trained:
    """A run that has ended: its folder, the net's file among the host's, and what was said.

    unet: the weights of the base's decoder, by key, where they were trained too.
    """

    folder: Path
    net: Path
    text: str
    unet: dict[str, Tensor] | None


@torch.inference_mode(False)
def train(
    base: Base,
    dataset: Dataset,
    config: TrainConfig,
    *,
    name: str,
    node: str | None,
    resume: bool,
) -> Trained:
    """Trains in this process; an interrupt saves the run and then stops the graph as ever.

    The net that scored best, else the last one, is copied into the host's `controlnet` folder, and
    a UNet that was trained with it into `diffusion_models`. Raises CldmError where the run can't
    begin, go on, or be copied.
    """
    if comfy.model_management.get_torch_device().type == "cpu":
        config = replace(config, device="cpu")
    require_accelerator(config)  # before anything is encoded
    interrupts = base.encoders.interrupts
    maker = None if dataset.maker is None else Uninterrupted(dataset.maker, interrupts)
    side = config.resolution or own_side(base)
    plan = plan_of(config, base, dataset.source_at(side), maker)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    _require_fit(plan)
    # Encoded once, so that the host's models needn't stay beside those that train.
    plan.batches.fill_cache(checked_progress(interrupts))
    _unload()
    reports = NodeReports(folder, plan, node, interrupts)
    if folder != run_folder(name, resume=True):
        reports.say(f"There is a run {name} already: this one is {run_name(folder)}.")
    if side != own_side(base):
        reports.say(
            f"resolution is {side}, and models of this kind were made at {own_side(base)}: 0 takes "
            f"that."
        )
    if not dataset.circles and dataset.side is not None and dataset.side < side:
        reports.say(
            f"Control Dataset looked at the pairs for {dataset.side} pixels, and they are trained "
            f"on at {side}: set its resolution to {side}, and it says which are too small."
        )
    try:
        fitted = fit(
            plan.trainable,
            plan.batches,
            config,
            out=folder,
            evaluator=plan.evaluator,
            history=reports,
            progress=reports.advance,
            stop=interrupts,
            resume=resume,
            shown=reports.show,
            say=reports.say,
        )
        reports.plot()
    finally:
        reports.close()
    if fitted.stopped:
        reports.say(
            f"Saved at step {fitted.step}: set name to {run_name(folder)} and resume on, queue it "
            f"again, and it goes on."
        )
        interrupts.end()
    net, unet = _published(fitted, config, name)
    interrupts.check()
    told = f"{reports.text}\nSaved as {net.name}."
    if fitted.best is not None:
        told += f" It is the net after step {_step_of(fitted.best)}, which scored best."
    if unet is not None:
        told += (
            f"\nThe model's decoder was trained with it: {unet.name} in models/diffusion_models is "
            f"the UNet to use it with. Load Diffusion Model reads it."
        )
    return Trained(folder, net, told, _decoder(fitted, config))


def _require_fit(plan: Plan) -> None:
    """Raises CldmError where CLIP or VAE are another model's, before all pairs are encoded."""
    batch, unet = plan.batches[0], plan.trainable.unet.config
    for part, what, found, wanted in (
        ("CLIP", "texts {} wide", batch.context.shape[-1], unet.context_dim),
        ("VAE", "latents of {} channels", batch.latents.shape[1], unet.in_channels),
    ):
        if found != wanted:
            raise CldmError(
                f"This {part} gives {what.format(found)}, and the model reads "
                f"{what.format(wanted)}: connect the {part} that belongs to the model."
            )


def _step_of(net: Path) -> int:
    """The step that the file of a trained net says it is of."""
    return int(json.loads(read_header(net).metadata[TRAINING_KEY])["step"])


def _published(fitted: Fitted, config: TrainConfig, name: str) -> tuple[Path, Path | None]:
    """The net's file where the host's loaders look, and the UNet's where it was trained too."""
    net, unet = new_controlnet_path(name), _unet_file(fitted, config)
    _copy(_chosen(fitted), net)
    if unet is None:
        return net, None
    published = new_model_path(name, "diffusion_models")
    _copy(unet, published)
    return net, published


def _copy(source: Path, target: Path) -> None:
    """Copies a file; the copy is whole or not there. Raises CldmError where it can't be written."""
    try:
        with whole_file(target) as part:
            shutil.copyfile(source, part)
    except OSError as error:
        raise CldmError(
            f"The run is complete, and what it trained is in {source}, but that can't be copied to "
            f"{target.parent} ({error.strerror or error}): make room, and copy it there."
        ) from error


def _decoder(fitted: Fitted, config: TrainConfig) -> dict[str, Tensor] | None:
    """Weights of the UNet's decoder that go with the net, by key; None where it wasn't trained."""
    path = _unet_file(fitted, config)
    if path is None:
        return None
    own = ("output_blocks.", "out.")
    return {key: value for key, value in read(path).tensors.items() if key.startswith(own)}


def _unet_file(fitted: Fitted, config: TrainConfig) -> Path | None:
    """The file of the UNet that goes with the net; None where it wasn't trained.

    An earlier run may have left one in the folder.
    """
    net = _chosen(fitted)
    return None if config.sd_locked else net.with_stem(f"{net.stem}_unet")


def _chosen(fitted: Fitted) -> Path:
    """The file of the net that scored best, else of the last one."""
    return fitted.best or fitted.net


def with_decoder(model: Any, decoder: dict[str, Tensor]) -> Any:
    """A clone of the MODEL whose decoder has these weights."""
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{key}": ("set", (v,)) for key, v in decoder.items()})
    return patched
