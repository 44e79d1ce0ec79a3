"""The loss of control nets: how well the steered UNet tells the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..config import Prediction
from ..diffusion import NoiseSchedule
from ..errors import CldmError, ShapeError
from ..residuals import Residuals

Reduction = Literal["mean", "none"]


def training_loss(
    unet: nn.Module,
    net: nn.Module,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    context: Tensor,
    hint: Tensor,
    *,
    schedule: NoiseSchedule,
    prediction: Prediction = "eps",
    y: Tensor | None = None,
    only_mid_control: bool = False,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The mean squared error of what the UNet predicts with the net's control.

    latents: (B, 4, h, w), scaled for the UNet; noise: as large, of variance 1; timesteps: (B,),
    whole, below schedule.timesteps; context, y: as ControlledUNet takes them; hint:
    (B, hint_channels, 8h, 8w) in [0, 1]. prediction: what the UNet was trained to tell, as in its
    configuration. only_mid_control: the residuals of the skip connections are left out. weights:
    (B,), such as those of `min_snr`. reduction: "mean" gives one number, "none" one for each
    picture, (B,).

    net is called once, through its forward, as `net(x, None, timesteps, context, y, hint=hint)`,
    and unet once: both may be wrapped (DDP, autocast). What the net gives is residuals, or patches
    as a ControlNet-LLLite's. Each is fed in the type of its weights; the loss is computed in fp32.
    Which weights get gradients is decided by their requires_grad alone: where the UNet's are
    frozen, its encoder leaves no graph. After p_losses of lllyasviel/ControlNet (ldm's ddpm.py).

    Raises ShapeError or FamilyMismatch where an input doesn't fit, CldmError for other values.
    """
    _check(latents, noise, timesteps, schedule, weights, reduction)
    wide = torch.promote_types(latents.dtype, torch.float32)
    clean, added = latents.to(wide), noise.to(wide)
    x = schedule.add_noise(clean, added, timesteps)
    target = schedule.target(clean, added, timesteps, prediction)
    net_x, net_context, net_y, net_hint = _cast_to(net, x, context, y, hint)
    control = net(net_x, None, timesteps, net_context, net_y, hint=net_hint)
    unet_x, unet_context, unet_y = _cast_to(unet, x, context, y)
    steering = _steering(control, only_mid_control)
    predicted = unet(unet_x, timesteps, unet_context, unet_y, **steering)
    if predicted.shape != target.shape:
        raise ShapeError(
            f"The UNet predicts {tuple(predicted.shape)} for latents {tuple(latents.shape)}: only "
            f"UNets that give as many channels as they take can be trained on."
        )
    losses: Tensor = (predicted.to(wide) - target).square().flatten(1).mean(dim=1)
    if weights is not None:
        losses = losses * weights.to(losses)
    return losses.mean() if reduction == "mean" else losses


def min_snr(
    schedule: NoiseSchedule, timesteps: Tensor, gamma: float = 5.0, prediction: Prediction = "eps"
) -> Tensor:
    """Weights (B,) in fp32 that keep steps of little noise from counting too much (Hang 2023).

    With the signal-to-noise ratio s of each step: min(s, gamma) / s for eps, min(s, gamma) / (s +
    1) for v. Raises CldmError for another prediction, or a gamma that isn't positive.
    """
    if not gamma > 0:
        raise CldmError(f"The gamma of min-SNR is {gamma}, expected a positive number, such as 5.")
    _check_timesteps(timesteps, schedule)
    share = schedule.alphas_cumprod().to(timesteps.device)[timesteps.long()]
    ratio = share / (1 - share)
    if prediction == "eps":
        weights = ratio.clamp(max=gamma) / ratio
    elif prediction == "v":
        weights = ratio.clamp(max=gamma) / (ratio + 1)
    else:
        raise CldmError(f"The prediction type is {prediction!r}, expected 'eps' or 'v'.")
    return weights.float()


def _steering(control: Any, only_mid_control: bool) -> dict[str, Any]:
    """How the UNet takes what a net gave."""
    if isinstance(control, Residuals):
        return {"control": control, "only_mid_control": only_mid_control}
    if isinstance(control, (tuple, list)) and all(isinstance(part, Mapping) for part in control):
        if only_mid_control:
            raise CldmError(
                "only_mid_control is on, and the net gives patches instead of residuals: turn it "
                "off, it is for ControlNets."
            )
        return {"patches": control}
    raise CldmError(
        f"The net gave a {type(control).__name__}, expected residuals or patches: give a control "
        f"net of this pack."
    )


def _cast_to(module: nn.Module, *inputs: Tensor | None) -> tuple[Any, ...]:
    """The inputs in the type of the module's weights; as they are where it has none."""
    types = (weight.dtype for weight in module.parameters() if weight.is_floating_point())
    dtype = next(types, None)
    return tuple(item if item is None or dtype is None else item.to(dtype) for item in inputs)


def _check(
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    weights: Tensor | None,
    reduction: str,
) -> None:
    if torch.is_inference_mode_enabled():
        raise CldmError(
            "Nothing can be trained under torch.inference_mode(): run the training within "
            "`with torch.inference_mode(False):`, with weights that were made there."
        )
    if reduction not in ("mean", "none"):
        raise CldmError(f"The reduction is {reduction!r}, expected 'mean' or 'none'.")
    if latents.ndim != 4 or not latents.numel():
        raise ShapeError(
            f"The latents have shape {tuple(latents.shape)}, expected (B, channels, h, w)."
        )
    if noise.shape != latents.shape:
        raise ShapeError(
            f"The noise has shape {tuple(noise.shape)}, expected that of the latents, "
            f"{tuple(latents.shape)}."
        )
    batch = latents.shape[:1]
    if timesteps.shape != batch:
        raise ShapeError(
            f"The timesteps have shape {tuple(timesteps.shape)}, expected ({batch[0]},): one for "
            f"each picture."
        )
    _check_timesteps(timesteps, schedule)
    if weights is not None and weights.shape != batch:
        raise ShapeError(
            f"The weights have shape {tuple(weights.shape)}, expected ({batch[0]},): one for each "
            f"picture."
        )


def _check_timesteps(timesteps: Tensor, schedule: NoiseSchedule) -> None:
    whole = not (timesteps.is_floating_point() or timesteps.is_complex())
    if not whole or timesteps.ndim != 1:
        raise ShapeError(
            f"The timesteps are {timesteps.dtype} of shape {tuple(timesteps.shape)}, expected "
            f"whole numbers (B,)."
        )
    # On a GPU, looking would wait for it at each step; there an index out of range fails by itself.
    if timesteps.is_cpu and timesteps.numel():
        low, high = (int(bound) for bound in timesteps.aminmax())
        if low < 0 or high >= schedule.timesteps:
            raise ShapeError(
                f"The timesteps go from {low} to {high}, expected 0 to {schedule.timesteps - 1}."
            )
