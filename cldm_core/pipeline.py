"""Text and hint to picture without a host; schedulers come from diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .config import Prediction, UNetConfig
from .control import Control as Control  # where users look for it
from .control import Hint as Hint
from .diffusion import NoiseSchedule
from .errors import CldmError, ShapeError
from .hints import HINT_SCALE
from .matching import check_family
from .projections import Patch
from .residuals import Residuals, merge
from .unet import ControlledUNet

Picture = np.ndarray[Any, np.dtype[np.uint8]]

SEEDS = 2**64
"""How many seeds PyTorch's generator takes."""

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


class Autoencoder(Protocol):
    """The half of an autoencoder that sampling needs; its latents are scaled for the UNet."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """(B, 4, h, w) to (B, 3, 8h, 8w) in [-1, 1]."""


TextEncoder = Callable[..., Any]
"""Prompts to embeddings (B, tokens, context_dim).

One with an attribute `sized` that is true, as SDXL needs it, also gets (height, width) of the
pictures in pixels, and gives the embeddings and the vectors y (B, adm_in_channels).
"""
SchedulerMaker = Callable[[str, NoiseSchedule, Prediction], Any]
"""Name, noise schedule and prediction to a scheduler as diffusers has them."""


@dataclass(frozen=True)
class Settings:
    """How pictures are sampled; width and height are multiples of 8 pixels.

    Picture i of `count` has the seed `seed + i`. Raises ShapeError or CldmError where a number
    doesn't fit.
    """

    steps: int = 20
    guidance: float = 7.5
    seed: int = 0
    width: int = 512
    height: int = 512
    count: int = 1
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        sides = (self.width, self.height)
        if min(sides) < 1 or any(side % HINT_SCALE for side in sides):
            raise ShapeError(
                f"The picture is {self.width}x{self.height}: both sides must be multiples of "
                f"{HINT_SCALE}, at least {HINT_SCALE}."
            )
        if self.steps < 1 or self.count < 1:
            raise CldmError(
                f"{self.steps} steps for {self.count} pictures were asked for: at least one of "
                "each."
            )
        if not math.isfinite(self.guidance):
            raise CldmError(f"The guidance is {self.guidance}, expected a finite number.")
        if self.seed < 0 or self.seed + self.count > SEEDS:
            raise CldmError(
                f"The seeds start at {self.seed}, expected whole numbers from 0 to 2^64 - 1."
            )


class Side(NamedTuple):
    """One side of the guidance: embeddings (B, tokens, context_dim) and SDXL's vectors, if any."""

    conditional: bool
    context: Tensor
    y: Tensor | None


@dataclass(frozen=True)
class Pipeline:
    """The parts of a text-to-image model, and the sampling loop over them.

    prediction: what the UNet predicts; None takes it from the UNet's configuration.
    scheduler_maker: where schedulers come from; None takes those of diffusers.
    """

    unet: ControlledUNet
    autoencoder: Autoencoder
    encode_text: TextEncoder
    prediction: Prediction | None = None
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    scheduler_maker: SchedulerMaker | None = None

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        controls: Iterable[Control] = (),
        settings: Settings | None = None,
        *,
        negative: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> Picture:
        """Pictures (count, height, width, 3), uint8 RGB; `progress(step, steps)` after each step.

        prompt: one for all pictures, or one for each of settings.count. The noise is drawn on the
        CPU, picture by picture, so a seed gives the same picture on every device and in every
        batch. Raises CldmError where prompts, hints and settings don't fit together.
        """
        settings = settings or Settings()
        controls = list(controls)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        _check(settings, prompts, controls, self.unet.config)
        scheduler = self._scheduler(settings)
        weight = next(self.unet.parameters())
        with _without_autocast(weight):
            sides = self._sides(prompts, negative, settings, weight)
        latents = self._sampled(sides, controls, settings, scheduler, progress)
        with _without_autocast(weight):
            pixels = self.autoencoder.decode(latents)
        return _to_picture(pixels)

    def _scheduler(self, settings: Settings) -> Any:
        if settings.steps >= self.schedule.timesteps:
            raise CldmError(
                f"{settings.steps} steps were asked for: the model was trained on "
                f"{self.schedule.timesteps}, so take fewer than that."
            )
        make = self.scheduler_maker or make_scheduler
        prediction = self.prediction or self.unet.config.prediction
        scheduler = make(settings.scheduler, self.schedule, prediction)
        scheduler.set_timesteps(settings.steps)
        return scheduler

    def _sides(
        self, prompts: Sequence[str], negative: str, settings: Settings, like: Tensor
    ) -> list[Side]:
        """The positive side, and the negative one where there is guidance.

        They are in the type and on the device of `like`.
        """
        texts = [negative, *prompts]
        if getattr(self.encode_text, "sized", False):
            context, y = self.encode_text(texts, (settings.height, settings.width))
            y = y.to(like)
        else:
            context, y = self.encode_text(texts), None
        context = context.to(like)
        positive = Side(True, context[1:], None if y is None else y[1:])
        if settings.guidance == 1:
            return [positive]
        return [positive, Side(False, context[:1], None if y is None else y[:1])]

    def _sampled(
        self,
        sides: Sequence[Side],
        controls: Sequence[Control],
        settings: Settings,
        scheduler: Any,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """The latents (count, 4, h, w) that the steps of the scheduler make of noise."""
        weight = next(self.unet.parameters())
        latents: Tensor = _noise(settings).to(weight) * scheduler.init_noise_sigma
        encoded = [(control, control.encode(weight)) for control in controls]
        options: dict[str, Any] = {}
        if settings.scheduler == "euler_ancestral":
            options = {"generator": [torch.Generator().manual_seed(s) for s in _seeds(settings)]}
        for index, timestep in enumerate(scheduler.timesteps):
            x = scheduler.scale_model_input(latents, timestep)
            share = index / settings.steps
            predicted = [self._predicted(x, timestep, side, encoded, share) for side in sides]
            guided = _guided(predicted, settings.guidance)
            latents = scheduler.step(guided, timestep, latents, **options).prev_sample
            if progress:
                progress(index + 1, settings.steps)
        return latents

    def _predicted(
        self,
        x: Tensor,
        timestep: Tensor,
        side: Side,
        encoded: Sequence[tuple[Control, Any]],
        share: float,
    ) -> Tensor:
        """What the UNet predicts on one side, with the controls that act there at this step.

        encoded: the controls with their hints' features; share: of the steps that are done.
        """
        timesteps = timestep.to(x).expand(x.shape[0])
        context = side.context.expand(x.shape[0], -1, -1)
        y = None if side.y is None else side.y.expand(x.shape[0], -1)
        residuals: Residuals | None = None
        patches: list[Patch] = []
        for control, features in encoded:
            if not control.acts(share, conditional=side.conditional):
                continue
            strength = control.strength_at(share)
            added = control.evaluate(features, strength, x, timesteps, context, y)
            if isinstance(added, Residuals):
                residuals = added if residuals is None else merge(residuals, added)
            else:
                patches += added
        out: Tensor = self.unet(x, timesteps, context, y, control=residuals, patches=patches)
        return out


def _guided(predicted: Sequence[Tensor], guidance: float) -> Tensor:
    """Classifier-free guidance over what was predicted on the positive side and the negative one.

    negative + guidance * (positive - negative); what the positive side says where it is alone.
    """
    if len(predicted) == 1:
        return predicted[0]
    positive, negative = predicted
    return negative + guidance * (positive - negative)


def make_scheduler(name: str, schedule: NoiseSchedule, prediction: Prediction) -> Any:
    """The scheduler of diffusers for a name of SCHEDULERS, set up as Stable Diffusion's."""
    if name not in SCHEDULERS:
        raise CldmError(f"There is no scheduler {name!r}: choose one of {', '.join(SCHEDULERS)}.")
    import diffusers

    options: dict[str, Any] = {}
    if name == "ddim":
        options = {"clip_sample": False, "set_alpha_to_one": False}
    return getattr(diffusers, SCHEDULERS[name])(
        num_train_timesteps=schedule.timesteps,
        beta_start=schedule.linear_start,
        beta_end=schedule.linear_end,
        beta_schedule="scaled_linear",
        prediction_type="epsilon" if prediction == "eps" else "v_prediction",
        steps_offset=1,
        **options,
    )


def _check(
    settings: Settings, prompts: Sequence[str], controls: Sequence[Control], unet: UNetConfig
) -> None:
    if len(prompts) not in (1, settings.count):
        raise CldmError(
            f"{len(prompts)} prompts were given for {settings.count} pictures: "
            "give one, or one for each."
        )
    for control in controls:
        check_family(control.net, unet)
        for hint in control.hints():
            _check_size(hint, settings)
        if control.mask is not None and len(control.mask) not in (1, settings.count):
            raise ShapeError(
                f"{len(control.mask)} masks were given for {settings.count} pictures: give one, or "
                "one for each."
            )


def _check_size(hint: Tensor, settings: Settings) -> None:
    height, width = hint.shape[2:]
    if (height, width) != (settings.height, settings.width):
        raise ShapeError(
            f"The hint is {width}x{height} and the picture "
            f"{settings.width}x{settings.height}: resize one of them."
        )


def _noise(settings: Settings) -> Tensor:
    shape = (1, 4, settings.height // HINT_SCALE, settings.width // HINT_SCALE)
    drawn = (torch.Generator().manual_seed(seed) for seed in _seeds(settings))
    return torch.cat([torch.randn(shape, generator=generator) for generator in drawn])


def _seeds(settings: Settings) -> range:
    """That of each picture."""
    return range(settings.seed, settings.seed + settings.count)


def _without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """For autoencoders and text encoders, which compute in the type of their weights.

    SDXL's autoencoder overflows in fp16.
    """
    try:
        return torch.autocast(like.device.type, enabled=False)
    except RuntimeError:  # an older PyTorch has no autocast there that could be ended
        return nullcontext()


def _to_picture(pixels: Tensor) -> Picture:
    scaled = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    picture: Picture = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return picture


def to_hint(picture: Picture) -> Tensor:
    """A picture (H, W, 3) or pictures (N, H, W, 3), uint8, to a hint (N, 3, H, W) in [0, 1]."""
    batch = picture if picture.ndim == 4 else picture[None]
    return torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 255
