"""Training on the host's models: a UNet of one's own, its encoders, and the run that a node starts.

Nodes run under `torch.inference_mode()`, and what is made there can't be trained: weights are
copied within `inference_mode(False)`, which takes the UNet's size in memory once more.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor

from ...cldm_core import CldmError, ControlledUNet
from ...cldm_core.pipeline import Pipeline
from ...cldm_core.training.config import TrainConfig
from ...cldm_core.training.encoding import SizeCondition, fingerprint
from ...cldm_core.training.evaluate import Evaluation
from ...cldm_core.training.loop import Fitted, fit
from ...cldm_core.training.models import Base
from ...cldm_core.training.plan import Plan, plan_of
from ...cldm_core.training.reports import Reports
from ...cldm_core.training.sources import Source
from .applied import show_text
from .checks import unet_config_of
from .files import new_controlnet_path
from .weights import BaseModelWeights

RUNS = "controlnet_training"
PREVIEW = 512
TINY_CONTEXT = 128
"""Width of the embedded model's text, which wants a gentler guidance."""


class HostEncoders:
    """The host's VAE and CLIP as training wants them; texts are cut to CLIP's one chunk.

    They run as in any other node; what they give is copied into tensors that can be trained with.
    """

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        parts = (vae.first_stage_model, clip.cond_stage_model)
        self.key = "host-" + "-".join(fingerprint(part) for part in parts)
        self.sized = unet_config_of(model.model).adm_in_channels is not None

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] to (B, 4, h, w), scaled for the UNet."""
        with torch.inference_mode():
            encoded = self.vae.encode((pictures / 2 + 0.5).movedim(1, -1))
            latents: Tensor = self.model.model.process_latent_in(encoded).float()
        return latents.clone()

    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        """Context (B, tokens, width), and SDXL's vector."""
        with torch.inference_mode():
            encoded = [self._encoded(prompt) for prompt in prompts]
            context = torch.cat([text[:, : self._tokens] for text, _ in encoded]).float()
            if not self.sized:
                return context.clone(), None
            vectors = [
                self.model.model.encode_adm(pooled_output=pooled, **_told(size))
                for (_, pooled), size in zip(encoded, sizes, strict=True)
            ]
        return context.clone(), torch.cat(vectors).float().clone()

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Context and pooled text."""
        tokens = self.clip.tokenize(prompt)
        found: tuple[Tensor, Tensor] = self.clip.encode_from_tokens(tokens, return_pooled=True)
        return found

    @cached_property
    def _tokens(self) -> int:
        """The length of a chunk: longer prompts would not fit beside others in a batch."""
        return self._encoded("")[0].shape[1]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w), scaled, to (B, 3, 8h, 8w) in [-1, 1]."""
        with torch.inference_mode():
            decoded: Tensor = self.vae.decode(self.model.model.process_latent_out(latents.float()))
        return decoded.movedim(-1, 1) * 2 - 1


class PromptEncoder:
    """The texts of a sampling, for the core's pipeline."""

    def __init__(self, encoders: HostEncoders) -> None:
        self.encoders, self.sized = encoders, encoders.sized

    def __call__(self, prompts: Sequence[str], size: tuple[int, int] = (0, 0)) -> Any:
        context, y = self.encoders.texts(
            prompts, [SizeCondition(size, (0, 0), size)] * len(prompts)
        )
        return (context, y) if self.sized else context


class HostScheduler:
    """Euler over the host's sigmas, in the form of diffusers' schedulers, which a host may lack."""

    def __init__(self, sampling: Any) -> None:
        self.sampling = sampling
        self.init_noise_sigma = 1.0

    def set_timesteps(self, steps: int) -> None:
        self._sigmas = comfy.samplers.calculate_sigmas(self.sampling, "normal", steps)
        self.timesteps = self.sampling.timestep(self._sigmas[:-1])
        self.init_noise_sigma = float((1 + self._sigmas[0].square()).sqrt())

    def scale_model_input(self, x: Tensor, timestep: Tensor) -> Tensor:
        """What the UNet reads of latents that have the noise of this step."""
        scaled: Tensor = self.sampling.calculate_input(self._sigmas[self._at(timestep)].to(x), x)
        return scaled

    def step(self, predicted: Tensor, timestep: Tensor, x: Tensor) -> Stepped:
        """Latents with the noise of the next step."""
        place = self._at(timestep)
        now, then = self._sigmas[place : place + 2].to(x)
        clean = self.sampling.calculate_denoised(now, predicted, x)
        return Stepped(x + (x - clean) / now * (then - now))

    def _at(self, timestep: Tensor) -> int:
        return int((self.timesteps == timestep).nonzero()[0])


class Stepped(NamedTuple):
    """What a scheduler's step gives, by its name in diffusers."""

    prev_sample: Tensor


def _told(size: SizeCondition) -> dict[str, int]:
    """The sizes by the names that the host's SDXL reads."""
    (height, width), (top, left), (target_height, target_width) = (
        size.original,
        size.corner,
        size.target,
    )
    return {
        "height": height,
        "width": width,
        "crop_h": top,
        "crop_w": left,
        "target_height": target_height,
        "target_width": target_width,
    }


def base_of(model: Any, clip: Any, vae: Any, dtype: torch.dtype) -> Base:
    """The host's model to train a net on, its UNet copied in `dtype`, with the MODEL's LoRAs.

    Raises FamilyMismatch where it is no picture UNet.
    """
    config = unet_config_of(model.model)
    comfy.model_management.load_models_gpu([model])
    weight = BaseModelWeights(model.model.diffusion_model)
    with torch.inference_mode(False):
        with torch.device("meta"):
            unet = ControlledUNet(config)
        state = {key: weight(key).to("cpu", dtype, copy=True) for key in unet.state_dict()}
        unet.load_state_dict(state, assign=True)
    encoders = HostEncoders(model, clip, vae)
    velocity = model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    pipeline = Pipeline(
        unet.requires_grad_(False).eval(),
        encoders,
        PromptEncoder(encoders),
        prediction="v" if velocity else "eps",
        scheduler_maker=lambda *_: HostScheduler(model.get_model_object("model_sampling")),
    )
    return Base(pipeline, encoders, 3.0 if config.context_dim == TINY_CONTEXT else 7.5)


def run_folder(name: str, *, resume: bool = False) -> Path:
    """The folder of a run below the host's output folder; raises CldmError for a bad name.

    Where one of this name is there and isn't to be gone on with, it gets a number.
    """
    root = (Path(folder_paths.get_output_directory()) / RUNS).resolve()
    wanted = (root / name.strip()).resolve()
    if wanted == root or not wanted.is_relative_to(root):
        raise CldmError(f"The run can't be called {name!r}: give a name, as for a file.")
    folder, number = wanted, 1
    while not resume and folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}_{number}")
    return folder


class NodeReports(Reports):
    """The record of a run that its node shows: numbers as text, and the last samples."""

    def __init__(self, folder: Path, plan: Plan, node: str | None, *, tensorboard: bool) -> None:
        held_out = plan.evaluator.held_out if plan.evaluator else ()
        super().__init__(folder, held_out, tensorboard=tensorboard)
        self._bar = comfy.utils.ProgressBar(plan.config.steps)
        self._steps, self._node = plan.config.steps, node
        self._lines: dict[str, str] = {}
        self._picture: Any = None

    def note(self, step: int, **numbers: Any) -> None:
        super().note(step, **numbers)
        if "loss" in numbers:
            rate = f", learning rate {numbers['lr']:.3g}" if "lr" in numbers else ""
            self._lines["loss"] = f"step {step} of {self._steps}: loss {numbers['loss']:.4f}{rate}"
        if "adherence" in numbers:
            name = str(numbers.get("score", "score")).replace("_", " ")
            self._lines["score"] = f"{name} {numbers['adherence']:.3f} at step {step}"
        show_text(self._node, self.text)

    @property
    def text(self) -> str:
        """What the node shows."""
        return "\n".join(self._lines.values())

    def say(self, sentence: str) -> None:
        """Adds a sentence, such as that the net has converged."""
        self._lines[sentence] = sentence
        show_text(self._node, self.text)

    def show(self, evaluation: Evaluation) -> None:
        super().show(evaluation)
        if evaluation.pictures:
            self._picture = Image.fromarray(evaluation.pictures[0])
            self._bar.update_absolute(self._bar.current, preview=("JPEG", self._picture, PREVIEW))

    def advance(self, step: int, steps: int) -> None:
        """For `fit`: a step is done."""
        preview = None if self._picture is None else ("JPEG", self._picture, PREVIEW)
        self._bar.update_absolute(step, steps, preview)


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
    source: Source,
    config: TrainConfig,
    *,
    annotator: Any,
    name: str,
    node: str | None,
    resume: bool,
) -> Trained:
    """Trains in this process; an interrupt saves the run and then stops the graph as ever.

    The net that scored best, else the last one, is copied into the host's `controlnet` folder.
    """
    plan = plan_of(config, base, source, annotator)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    # Encoded once, so that the host's models needn't stay beside those that train.
    plan.batches.fill_cache(_checked_progress())
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    reports = NodeReports(folder, plan, node, tensorboard=config.tensorboard)
    try:
        fitted = fit(
            plan.trainable,
            plan.batches,
            config,
            out=folder,
            evaluator=plan.evaluator,
            history=reports,
            progress=reports.advance,
            stop=comfy.model_management.processing_interrupted,
            resume=resume,
            shown=reports.show,
            say=reports.say,
        )
        reports.plot()
    finally:
        reports.close()
    if fitted.stopped:
        comfy.model_management.throw_exception_if_processing_interrupted()
    unet = plan.trainable.unet_state_dict_to_save()
    decoder = None
    if unet is not None:
        own = ("output_blocks.", "out.")
        decoder = {k: v.detach().cpu().clone() for k, v in unet.items() if k.startswith(own)}
    net = _published(fitted, name)
    return Trained(folder, net, f"{reports.text}\nsaved as {net.name}", decoder)


def _checked_progress() -> Any:
    """A progress bar that an interrupt of the graph ends."""
    bar = comfy.utils.ProgressBar(1)

    def told(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return told


def _published(fitted: Fitted, name: str) -> Path:
    """The net's file, copied to where the host's loaders look."""
    path = new_controlnet_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    shutil.copyfile(fitted.best or fitted.net, part)
    part.replace(path)
    return path


def with_decoder(model: Any, decoder: dict[str, Tensor]) -> Any:
    """A clone of the MODEL whose decoder has these weights."""
    patched = model.clone()
    patched.add_patches({f"diffusion_model.{key}": ("set", (v,)) for key, v in decoder.items()})
    return patched
