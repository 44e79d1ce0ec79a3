"""A MODEL, CLIP and VAE as the base of a training: a UNet of one's own, encoders, samples.

Nodes run under `torch.inference_mode()`, and what is made there can't be trained: weights are
copied within `inference_mode(False)`, which takes the UNet's size in memory once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...cldm_core import CldmError, ControlledUNet, tiny
from ...cldm_core.checkpoint.dtypes import unified
from ...cldm_core.config import own_size
from ...cldm_core.diffusion import NoiseSchedule
from ...cldm_core.euler import EulerScheduler
from ...cldm_core.pipeline import Pipeline
from ...cldm_core.training.config import TrainConfig
from ...cldm_core.training.encoding import SizeCondition
from ...cldm_core.training.models import FULL_GUIDANCE, TINY_GUIDANCE, Base
from .checks import unet_config_of
from .interrupts import Interrupts
from .model_keys import key_of
from .weights import BaseModelWeights

TINY_CONTEXT = 128
"""Width of the embedded model's text, which wants a gentler guidance."""
SAME_NOISE = 0.01
"""By which share sigmas may differ that are meant to be the same."""


class HostEncoders:
    """The host's VAE and CLIP as training wants them; texts are cut to CLIP's one chunk.

    They run as in any other node; what they give is copied into tensors that can be trained with.
    interrupts: those that came meanwhile.
    """

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        self.interrupts = Interrupts()
        latent = model.model.latent_format
        scaled = f"{type(latent).__name__}-{latent.scale_factor}"
        self.key = f"host-{key_of(vae.patcher)}-{scaled}-{key_of(clip.patcher)}-{clip.layer_idx}"
        self.sized = unet_config_of(model.model).adm_in_channels is not None

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, 3, 8h, 8w) in [-1, 1] to (B, 4, h, w), scaled for the UNet."""
        with torch.inference_mode():
            images = (pictures / 2 + 0.5).movedim(1, -1)
            encoded = self.interrupts.through(self.vae.encode, images)
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
        return self.interrupts.through(self.clip.encode_from_tokens, tokens, True)

    @cached_property
    def _tokens(self) -> int:
        """The length of a chunk: longer prompts would not fit beside others in a batch."""
        return self._encoded("")[0].shape[1]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w), scaled, to (B, 3, 8h, 8w) in [-1, 1]."""
        with torch.inference_mode():
            unscaled = self.model.model.process_latent_out(latents.float())
            decoded: Tensor = self.interrupts.through(self.vae.decode, unscaled)
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


def base_of(model: Any, clip: Any, vae: Any, dtype: torch.dtype | None) -> Base:
    """The host's model to train a net on, its UNet copied in `dtype`, with the MODEL's LoRAs.

    dtype: None takes the type that the host has it in, and fp32 where that is of 8 bits.
    Raises FamilyMismatch where it is no picture UNet, and CldmError where it was made for other
    targets or another noise than training has.
    """
    sampling = model.get_model_object("model_sampling")
    prediction = prediction_of(sampling)
    config = replace(unet_config_of(model.model), prediction=prediction)
    require_schedule(sampling)
    comfy.model_management.load_models_gpu([model])
    weight = BaseModelWeights(model.model.diffusion_model)
    with torch.inference_mode(False):
        with torch.device("meta"):
            unet = ControlledUNet(config)
        state = {key: weight(key).to("cpu", dtype, copy=True) for key in unet.state_dict()}
        unet.load_state_dict(unified(state, dtype, "The model"), assign=True)
    encoders = HostEncoders(model, clip, vae)
    sigmas = partial(comfy.samplers.calculate_sigmas, sampling, "normal")
    pipeline = Pipeline(
        unet.requires_grad_(False).eval(),
        encoders,
        PromptEncoder(encoders),
        prediction=prediction,
        scheduler_maker=lambda *_: EulerScheduler(sampling, sigmas),
    )
    return Base(
        pipeline,
        encoders,
        TINY_GUIDANCE if config.context_dim == TINY_CONTEXT else FULL_GUIDANCE,
    )


def for_base(config: TrainConfig, base: Base) -> TrainConfig:
    """The settings with what the model says: what it predicts, and its size where none is set."""
    return replace(
        config,
        prediction=base.pipeline.prediction,
        resolution=config.resolution or own_side(base),
    )


def own_side(base: Base) -> int:
    """Pixels along the side of the squares that models of this kind were made at."""
    unet = base.pipeline.unet.config
    return tiny.SIZE if unet.context_dim == TINY_CONTEXT else own_size(unet)


def prediction_of(sampling: Any) -> Literal["eps", "v"]:
    """What a MODEL predicts by the host's object for it; raises CldmError for other kinds."""
    # EDM is a subclass of V_PREDICTION, which is one of EPS, as X0 is.
    others = (comfy.model_sampling.EDM, comfy.model_sampling.X0)
    if isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, others):
        return "v" if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else "eps"
    raise CldmError(
        "This model predicts neither noise nor velocity, and training knows no other kind: take a "
        "model of the kinds SD 1.5, SD 2.1 or SDXL."
    )


def require_schedule(sampling: Any) -> None:
    """Raises CldmError where the host adds noise in other shares than training does."""
    share = NoiseSchedule().alphas_cumprod()
    wanted = ((1 - share) / share).sqrt()
    found = sampling.sigmas.double().cpu()
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=SAME_NOISE):
        raise CldmError(
            f"This model has a noise schedule of its own ({len(found)} steps up to a sigma of "
            f"{found.max():.5g}), and training knows Stable Diffusion's alone ({len(wanted)} up to "
            f"{wanted.max():.5g}): take a model without zero terminal SNR or EDM, or remove the "
            f"node that sets the sampling."
        )
