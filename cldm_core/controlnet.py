"""ControlNet (Zhang, Rao, Agrawala 2023): a trainable copy of the UNet's encoder."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .blocks import zero_module
from .config import ControlNetConfig
from .errors import ShapeError
from .parts import Parts
from .residuals import Residuals, pool
from .unet import Encoder

HINT_SCALE = 8
OVERSHOOT = 0.5
"""How far smooth resizing may lead beyond a hint's range without making it wrong."""


class ControlNet(Encoder):
    """Reads noisy latents, text and a hint; gives the residuals that steer the frozen UNet.

    state_dict() keys are those of `control_model` in public checkpoints (cldm.py of
    lllyasviel/ControlNet).
    """

    def __init__(
        self, config: ControlNetConfig, ops: Any = nn, *, attention: Attention = sdpa
    ) -> None:
        super().__init__(Parts(config.unet, ops, attention))
        self.config = config
        self.zero_convs = nn.ModuleList(
            zero_conv(channels, ops) for channels in self.block_channels
        )
        self.input_hint_block = hint_encoder(config.hint_channels, config.unet.model_channels, ops)
        self.middle_block_out = zero_conv(self.block_channels[-1], ops)

    def encode_hint(self, hint: Tensor) -> Tensor:
        """Features (B, model_channels, h, w) of a hint (B, hint_channels, 8h, 8w) in [0, 1].

        Inpaint nets also know -1, at masked pixels. The features depend on neither timestep nor
        text: compute them once for all steps. Raises ShapeError for another shape, type or range.
        """
        self._check_hint(hint)
        first = self.input_hint_block[0]
        # Layers of a host cast by themselves, and may compute in another type than they store.
        if type(first) is nn.Conv2d and not torch.is_autocast_enabled(hint.device.type):
            hint = hint.to(first.weight.dtype)
        features: Tensor = self.input_hint_block(hint)
        return features

    def _check_hint(self, hint: Tensor) -> None:
        channels = self.config.hint_channels
        if hint.ndim != 4 or hint.shape[1] != channels or not hint.numel():
            raise ShapeError(
                f"The hint has shape {tuple(hint.shape)}, this net takes (B, {channels}, 8h, 8w)."
            )
        if hint.shape[2] % HINT_SCALE or hint.shape[3] % HINT_SCALE:
            raise ShapeError(
                f"The hint is {hint.shape[2]}x{hint.shape[3]}: both sides must be multiples of "
                f"{HINT_SCALE}."
            )
        if not hint.is_floating_point():
            raise ShapeError(
                f"The hint is {hint.dtype}, expected floating-point numbers in [0, 1]: convert it, "
                "and divide pictures of 0 to 255 by 255."
            )
        low, high = (bound.item() for bound in hint.detach().aminmax())
        if math.isnan(low) or math.isinf(low) or math.isinf(high):
            raise ShapeError(
                "The hint holds NaN or infinite values: check the picture or the annotator it "
                "comes from."
            )
        if low < -1 - OVERSHOOT or high > 1 + OVERSHOOT:
            raise ShapeError(
                f"The hint's values go from {low:g} to {high:g}, expected [0, 1]: divide pictures "
                "of 0 to 255 by 255."
            )

    def forward(
        self,
        x: Tensor,
        features: Tensor | None,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None = None,
        *,
        hint: Tensor | None = None,
    ) -> Residuals:
        """Residuals for noisy latents x (B, in_channels, h, w).

        timesteps, context and y are those of ControlledUNet.forward.

        features: what encode_hint gave, of batch 1 or B; where None, `hint` is encoded here (so
        that a wrapper for training sees one forward). Raises ShapeError or FamilyMismatch, with the
        shapes, where an input doesn't fit.
        """
        self.check_inputs(x, timesteps, context)
        if features is None:
            if hint is None:
                raise ShapeError(
                    "A ControlNet needs a hint: give `features` from encode_hint, or `hint`."
                )
            features = self.encode_hint(hint)
        self._check_features(x, features)
        emb = self.embed(timesteps, y, x.dtype)
        output = []
        h = x
        for index, (module, zero) in enumerate(
            zip(self.input_blocks, self.zero_convs, strict=True)
        ):
            h = module(h, emb, context)
            if index == 0:
                h = h + features
            output.append(zero(h))
        h = self.middle_block(h, emb, context)
        residuals = Residuals(tuple(output), (self.middle_block_out(h),))
        return pool(residuals) if self.config.global_average_pooling else residuals

    def _check_features(self, x: Tensor, features: Tensor) -> None:
        if features.ndim != 4 or features.shape[1] != self.unet_config.model_channels:
            raise ShapeError(
                f"The features have shape {tuple(features.shape)}: give what encode_hint returned."
            )
        if features.shape[2:] != x.shape[2:]:
            height, width = (HINT_SCALE * side for side in x.shape[2:])
            found_height, found_width = (HINT_SCALE * side for side in features.shape[2:])
            raise ShapeError(
                f"The hint is {found_height}x{found_width} and the latents need {height}x{width}: "
                f"resize the hint."
            )
        if features.shape[0] not in (1, x.shape[0]):
            raise ShapeError(
                f"{features.shape[0]} hints were given for a batch of {x.shape[0]}: give one, or "
                f"one for each."
            )


def zero_conv(channels: int, ops: Any = nn) -> nn.Sequential:
    """A 1x1 convolution that starts at zero, under the key `.0` as in public checkpoints."""
    return nn.Sequential(zero_module(ops.Conv2d(channels, channels, 1)))


def hint_encoder(hint_channels: int, model_channels: int, ops: Any = nn) -> nn.Sequential:
    """Eight 3x3 convolutions, three of stride 2, SiLU between; the last starts at zero."""
    plan = [(16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2)]
    layers: list[nn.Module] = []
    channels = hint_channels
    for out, stride in plan:
        layers += [ops.Conv2d(channels, out, 3, stride=stride, padding=1), nn.SiLU()]
        channels = out
    return nn.Sequential(*layers, zero_module(ops.Conv2d(channels, model_channels, 3, padding=1)))
