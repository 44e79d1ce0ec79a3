"""Text and hint to picture without a host; schedulers come from diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from .config import Prediction, UNetConfig
from .control import Active
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


class Text(NamedTuple):
    """One side of the guidance: embeddings (B, tokens, context_dim) and SDXL's vectors, if any."""

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
        prediction = self.prediction or self.unet.config.prediction
        make = self.scheduler_maker or make_scheduler
        scheduler = make(settings.scheduler, self.schedule, prediction)
        if settings.steps >= self.schedule.timesteps:
            raise CldmError(
                f"{settings.steps} steps were asked for: the model was trained on "
                f"{self.schedule.timesteps}, so take fewer than that."
            )
        scheduler.set_timesteps(settings.steps)
        weight = next(self.unet.parameters())
        with _without_autocast(weight):
            context, y = self._encoded([negative, *prompts], settings, weight)
        sides = [Text(context[1:], None if y is None else y[1:])]
        if settings.guidance != 1:
            sides.insert(0, Text(context[:1], None if y is None else y[:1]))
        latents = _noise(settings).to(weight) * scheduler.init_noise_sigma
        features = [control.encode(weight) for control in controls]
        generators = [torch.Generator().manual_seed(seed) for seed in _seeds(settings)]
        for index, timestep in enumerate(scheduler.timesteps):
            share = index / settings.steps
            active = [
                [
                    partial(control.evaluate, encoded, control.strength_at(share))
                    for control, encoded in zip(controls, features, strict=True)
                    if control.acts(share, conditional=conditional)
                ]
                for conditional in (False, True)
            ]
            x = scheduler.scale_model_input(latents, timestep)
            predicted = self._guided(x, timestep, sides, active, settings.guidance)
            options = {"generator": generators} if settings.scheduler == "euler_ancestral" else {}
            latents = scheduler.step(predicted, timestep, latents, **options).prev_sample
            if progress:
                progress(index + 1, settings.steps)
        with _without_autocast(weight):
            pixels = self.autoencoder.decode(latents)
        return _to_picture(pixels)

    def _encoded(self, prompts: Sequence[str], settings: Settings, like: Tensor) -> Text:
        """The prompts' texts, in the type and on the device of `like`."""
        if not getattr(self.encode_text, "sized", False):
            return Text(self.encode_text(prompts).to(like), None)
        context, y = self.encode_text(prompts, (settings.height, settings.width))
        return Text(context.to(like), y.to(like))

    def _guided(
        self,
        x: Tensor,
        timestep: Tensor,
        sides: Sequence[Text],
        active: Sequence[Sequence[Active]],
        guidance: float,
    ) -> Tensor:
        """Classifier-free guidance: negative + guidance * (positive - negative).

        Where `guidance` is 1, `sides` is the positive one alone. active: the controls of the
        negative and of the positive side.
        """
        positive = self._side(x, timestep, sides[-1], active[1])
        if len(sides) == 1:
            return positive
        negative = self._side(x, timestep, sides[0], active[0])
        return negative + guidance * (positive - negative)

    def _side(self, x: Tensor, timestep: Tensor, text: Text, active: Sequence[Active]) -> Tensor:
        timesteps = timestep.to(x).expand(x.shape[0])
        context = text.context.expand(x.shape[0], -1, -1)
        y = None if text.y is None else text.y.expand(x.shape[0], -1)
        residuals: Residuals | None = None
        patches: list[Patch] = []
        for evaluate in active:
            found = evaluate(x, timesteps, context, y)
            if isinstance(found, Residuals):
                residuals = found if residuals is None else merge(residuals, found)
            else:
                patches += found
        out: Tensor = self.unet(x, timesteps, context, y, control=residuals, patches=patches)
        return out


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
