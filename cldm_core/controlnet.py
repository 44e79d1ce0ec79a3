"""ControlNet (Zhang, Rao, Agrawala 2023): a trainable copy of the UNet's encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .attention import Attention, sdpa
from .blocks import repeated, zero_module
from .config import ControlNetConfig
from .errors import ShapeError
from .hints import HINT_SCALE, check_count, check_hint, in_type_of
from .parts import Parts
from .residuals import Residuals, pool
from .unet import Encoder


class ControlEncoder(Encoder):
    """What ControlNets of every kind share: hint encoder, copied encoder, zero convolutions.

    state_dict() keys are those of `control_model` in public checkpoints (cldm.py of
    lllyasviel/ControlNet).
    """

    def __init__(
        self, config: ControlNetConfig, ops: Any = nn, *, attention: Attention = sdpa
    ) -> None:
        super().__init__(Parts(config.unet, ops, attention))
        self.control_config = config
        self.zero_convs = nn.ModuleList(
            zero_conv(channels, ops) for channels in self.block_channels
        )
        self.input_hint_block = hint_encoder(config.hint_channels, config.unet.model_channels, ops)
        self.middle_block_out = zero_conv(self.block_channels[-1], ops)

    @property
    def residual_count(self) -> int:
        """One for each of the encoder's blocks, and the middle's."""
        return len(self.zero_convs) + 1

    @property
    def pooled(self) -> bool:
        """Whether the residuals are averaged over the picture."""
        return self.control_config.global_average_pooling

    @property
    def context_dim(self) -> int | None:
        """How wide the texts are that it reads, None where it reads none."""
        return self.unet_config.context_dim

    @property
    def hint_channels(self) -> int:
        """How many channels the hints have."""
        return self.control_config.hint_channels

    def encode_picture(self, hint: Tensor) -> Tensor:
        """Features (B, model_channels, h, w) of a hint; raises ShapeError where it doesn't fit."""
        check_hint(hint, self.control_config.hint_channels)
        features: Tensor = self.input_hint_block(in_type_of(self.input_hint_block[0], hint))
        return features

    def steer(self, x: Tensor, features: Tensor, emb: Tensor, context: Tensor | None) -> Residuals:
        """Residuals for latents x, encoded hints and the time embedding, all of them checked.

        With several texts for each picture, those of the blocks in front of the first text are
        computed once.
        """
        output = []
        h = x
        for index, (module, zero) in enumerate(
            zip(self.input_blocks, self.zero_convs, strict=True)
        ):
            h = module(h, emb, context)
            if index == 0:
                h = h + features.to(h.dtype)
            output.append(zero(h))
        h = self.middle_block(h, emb, context)
        output.append(self.middle_block_out(h))
        rows = x.shape[0] if context is None else context.shape[0]
        *skips, middle = (repeated(item, rows) for item in output)
        residuals = Residuals(tuple(skips), (middle,))
        return pool(residuals) if self.control_config.global_average_pooling else residuals

    def check_features(self, x: Tensor, features: Tensor) -> None:
        """Raises ShapeError where the encoded hint doesn't fit the latents x."""
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
        check_count(features.shape[0], x.shape[0])


class ControlNet(ControlEncoder):
    """Reads noisy latents, text and a hint; gives the residuals that steer the frozen UNet."""

    @property
    def config(self) -> ControlNetConfig:
        return self.control_config

    def encode_hint(self, hint: Tensor) -> Tensor:
        """Features (B, model_channels, h, w) of a hint (B, hint_channels, 8h, 8w) in [0, 1].

        Inpaint nets also know -1, at masked pixels. The features depend on neither timestep nor
        text: compute them once for all steps. Raises ShapeError for another shape, type or range.
        """
        return self.encode_picture(hint)

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

        timesteps, context and y are those of ControlledUNet.forward. Without y, context may hold
        k * B texts: the first text of every picture, then the second of every picture, and so on.
        The residuals are those of x tiled k times, but the blocks before the first cross-attention
        run once, so that classifier-free guidance costs less than two passes.

        features: what encode_hint gave, of batch 1 or B; where None, `hint` is encoded here (so
        that a wrapper for training sees one forward). Raises ShapeError or FamilyMismatch, with the
        shapes, where an input doesn't fit.
        """
        self.check_inputs(x, timesteps, context, several_texts=y is None)
        if features is None:
            if hint is None:
                raise ShapeError(
                    "A ControlNet needs a hint: give `features` from encode_hint, or `hint`."
                )
            features = self.encode_hint(hint)
        self.check_features(x, features)
        return self.steer(x, features, self.embed(timesteps, y, x.dtype), context)


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
