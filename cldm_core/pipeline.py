"""Text and hint to picture without a host; schedulers come from diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .config import Prediction
from .controlnet import HINT_SCALE, ControlNet
from .diffusion import NoiseSchedule
from .errors import CldmError, ShapeError
from .residuals import Residuals, guess_mode_scales, merge, weigh
from .unet import ControlledUNet

Picture = np.ndarray[Any, np.dtype[np.uint8]]

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


class Autoencoder(Protocol):
    """Pictures to latents and back; latents come scaled to the UNet's liking."""

    def encode(self, pixels: Tensor, /) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] to (B, 4, h, w)."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """(B, 4, h, w) to (B, 3, 8h, 8w) in [-1, 1]."""


TextEncoder = Callable[[Sequence[str]], Tensor]
"""Prompts to embeddings (B, tokens, context_dim)."""


@dataclass(frozen=True)
class Control:
    """A net with its hint: (B, hint_channels, 8h, 8w) in [0, 1], B 1 or one for each picture.

    strength scales the residuals; the control acts from `start` to `end`, shares of the steps in
    [0, 1]; guess mode weakens the early blocks and leaves the unconditional side without control.
    """

    net: ControlNet
    hint: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False

    def scales(self) -> float | tuple[float, ...]:
        if not self.guess_mode:
            return self.strength
        return guess_mode_scales(self.strength, len(self.net.zero_convs) + 1)

    def acts(self, progress: float) -> bool:
        """Whether it acts on the step that begins at `progress` in [0, 1)."""
        return self.strength != 0 and self.start <= progress <= self.end


@dataclass(frozen=True)
class Settings:
    """How pictures are sampled; width and height are multiples of 8 pixels."""

    steps: int = 20
    guidance: float = 7.5
    seed: int = 0
    width: int = 512
    height: int = 512
    count: int = 1
    scheduler: str = "ddim"


@dataclass(frozen=True)
class Pipeline:
    """The parts of a text-to-image model, and the sampling loop over them."""

    unet: ControlledUNet
    autoencoder: Autoencoder
    encode_text: TextEncoder
    prediction: Prediction = "eps"
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)

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

        prompt: one for all pictures, or one for each of settings.count.

        The noise is drawn on the CPU, picture by picture, so a seed gives the same picture on every
        device and in every batch. Raises CldmError where settings or hints don't fit.
        """
        settings = settings or Settings()
        controls = list(controls)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        _check(settings, prompts, controls)
        weight = next(self.unet.parameters())
        unconditional, *conditional = self.encode_text([negative, *prompts]).to(weight)
        sides = [torch.stack(conditional)]
        if settings.guidance != 1:
            sides.insert(0, unconditional[None])
        scheduler = make_scheduler(settings.scheduler, self.schedule, self.prediction)
        scheduler.set_timesteps(settings.steps)
        latents = _noise(settings).to(weight) * scheduler.init_noise_sigma
        features = [control.net.encode_hint(control.hint.to(weight)) for control in controls]
        generator = torch.Generator().manual_seed(settings.seed)
        for index, timestep in enumerate(scheduler.timesteps):
            active = [
                (control, encoded)
                for control, encoded in zip(controls, features, strict=True)
                if control.acts(index / settings.steps)
            ]
            x = scheduler.scale_model_input(latents, timestep)
            predicted = self._guided(x, timestep, sides, active, settings.guidance)
            options = {"generator": generator} if settings.scheduler == "euler_ancestral" else {}
            latents = scheduler.step(predicted, timestep, latents, **options).prev_sample
            if progress:
                progress(index + 1, settings.steps)
        pixels = self.autoencoder.decode(latents)
        return _to_picture(pixels)

    def _guided(
        self,
        x: Tensor,
        timestep: Tensor,
        sides: Sequence[Tensor],
        active: Sequence[tuple[Control, Tensor]],
        guidance: float,
    ) -> Tensor:
        """Classifier-free guidance.

        Negative + guidance * (positive - negative); one side alone where it is 1.
        """
        positive = self._side(x, timestep, sides[-1], active, conditional=True)
        if len(sides) == 1:
            return positive
        negative = self._side(x, timestep, sides[0], active, conditional=False)
        return negative + guidance * (positive - negative)

    def _side(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        active: Sequence[tuple[Control, Tensor]],
        *,
        conditional: bool,
    ) -> Tensor:
        timesteps = timestep.to(x).expand(x.shape[0])
        context = text.expand(x.shape[0], -1, -1)
        residuals: Residuals | None = None
        for control, features in active:
            if control.guess_mode and not conditional:
                continue
            new = weigh(control.net(x, features, timesteps, context), control.scales())
            residuals = new if residuals is None else merge(residuals, new)
        out: Tensor = self.unet(x, timesteps, context, control=residuals)
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


def _check(settings: Settings, prompts: Sequence[str], controls: Sequence[Control]) -> None:
    if settings.width % HINT_SCALE or settings.height % HINT_SCALE:
        raise ShapeError(
            f"The picture is {settings.width}x{settings.height}: both sides must be multiples of 8."
        )
    if settings.steps < 1 or settings.count < 1:
        raise CldmError(
            f"{settings.steps} steps for {settings.count} pictures were asked for: at least one "
            f"of each."
        )
    if len(prompts) not in (1, settings.count):
        raise CldmError(
            f"{len(prompts)} prompts were given for {settings.count} pictures: give one, or one "
            f"for each."
        )
    for control in controls:
        height, width = control.hint.shape[2:]
        if (height, width) != (settings.height, settings.width):
            raise ShapeError(
                f"The hint is {width}x{height} and the picture "
                f"{settings.width}x{settings.height}: resize one of them."
            )


def _noise(settings: Settings) -> Tensor:
    shape = (1, 4, settings.height // HINT_SCALE, settings.width // HINT_SCALE)
    seeds = range(settings.seed, settings.seed + settings.count)
    return torch.cat(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def _to_picture(pixels: Tensor) -> Picture:
    scaled = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    picture: Picture = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return picture


def to_hint(picture: Picture) -> Tensor:
    """A picture (H, W, 3) or pictures (N, H, W, 3), uint8, to a hint (N, 3, H, W) in [0, 1]."""
    batch = picture if picture.ndim == 4 else picture[None]
    return torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float() / 255
