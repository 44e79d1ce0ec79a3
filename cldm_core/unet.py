"""The UNet of latent diffusion, whole, and its encoder alone as a ControlNet copies it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .blocks import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    TimestepEmbedSequential,
    Upsample,
    timestep_embedding,
    zero_module,
)
from .config import GROUPS, UNetConfig
from .errors import CldmError, FamilyMismatch, ShapeError
from .residuals import Residuals, Slot


class Encoder(nn.Module):
    """Time embedding, input blocks and middle block.

    What a UNet and its trainable copy have in common.
    """

    def __init__(self, config: UNetConfig, *, ops: Any = nn, attention: Attention = sdpa) -> None:
        super().__init__()
        self.unet_config = config
        self._ops, self._attention = ops, attention
        emb = config.time_embed_dim
        self.time_embed = nn.Sequential(
            ops.Linear(config.model_channels, emb), nn.SiLU(), ops.Linear(emb, emb)
        )
        if config.adm_in_channels is not None:
            self.label_emb = nn.Sequential(
                nn.Sequential(
                    ops.Linear(config.adm_in_channels, emb), nn.SiLU(), ops.Linear(emb, emb)
                )
            )
        self.input_blocks, self.block_channels = self._build_input_blocks()
        self.middle_block = self._build_middle_block()

    def _res_block(self, channels: int, out_channels: int, **resample: bool) -> ResBlock:
        config = self.unet_config
        return ResBlock(
            channels,
            config.time_embed_dim,
            out_channels,
            dropout=config.dropout,
            use_scale_shift_norm=config.use_scale_shift_norm,
            ops=self._ops,
            **resample,
        )

    def _transformer(
        self, channels: int, depth: int, *, disable_self_attn: bool
    ) -> SpatialTransformer:
        config = self.unet_config
        heads, head_channels = config.heads(channels)
        return SpatialTransformer(
            channels,
            config.context_dim,
            heads,
            head_channels,
            depth,
            use_linear=config.use_linear_in_transformer,
            disable_self_attn=disable_self_attn,
            attention=self._attention,
            ops=self._ops,
        )

    def _build_input_blocks(self) -> tuple[nn.ModuleList, tuple[int, ...]]:
        """The input blocks, and how many channels each gives."""
        config, ops = self.unet_config, self._ops
        channels = config.model_channels
        blocks = [TimestepEmbedSequential(ops.Conv2d(config.in_channels, channels, 3, padding=1))]
        widths = [channels]
        depths = iter(config.transformer_depth)
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks[level]):
                out = mult * config.model_channels
                layers: list[nn.Module] = [self._res_block(channels, out)]
                if depth := next(depths):
                    off = config.self_attention_off(level)
                    layers.append(self._transformer(out, depth, disable_self_attn=off))
                blocks.append(TimestepEmbedSequential(*layers))
                widths.append(channels := out)
            if level < len(config.channel_mult) - 1:
                blocks.append(TimestepEmbedSequential(self._downsample(channels)))
                widths.append(channels)
        return nn.ModuleList(blocks), tuple(widths)

    def _downsample(self, channels: int) -> nn.Module:
        if self.unet_config.resblock_updown:
            return self._res_block(channels, channels, down=True)
        return Downsample(
            channels, channels, use_conv=self.unet_config.conv_resample, ops=self._ops
        )

    def _build_middle_block(self) -> TimestepEmbedSequential:
        config, channels = self.unet_config, self.block_channels[-1]
        layers: list[nn.Module] = [self._res_block(channels, channels)]
        if config.transformer_depth_middle >= 0:
            layers += [
                self._transformer(
                    channels,
                    config.transformer_depth_middle,
                    disable_self_attn=config.disable_middle_self_attn,
                ),
                self._res_block(channels, channels),
            ]
        return TimestepEmbedSequential(*layers)

    def embed(self, timesteps: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The time embedding (B.

        4 * model_channels), with the vector y (B, adm_in_channels) where the family has one.
        """
        emb: Tensor = self.time_embed(
            timestep_embedding(timesteps, self.unet_config.model_channels).to(dtype)
        )
        expected = self.unet_config.adm_in_channels
        if expected is None:
            return emb
        if y is None or y.shape[-1] != expected:
            found = "none was given" if y is None else f"it has {y.shape[-1]} numbers"
            raise FamilyMismatch(
                f"This net needs a vector y of {expected} numbers (SDXL's size and pooled text); "
                f"{found}."
            )
        return emb + self.label_emb(y.to(dtype))  # type: ignore[no-any-return]

    def check_inputs(self, x: Tensor, context: Tensor | None) -> None:
        """Raises ShapeError or FamilyMismatch.

        With the shapes, where x or the context can't be this family's.
        """
        config = self.unet_config
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(
                f"The latents have shape {tuple(x.shape)}, expected (B, {config.in_channels}, h, "
                f"w)."
            )
        factor = 2 ** (len(config.channel_mult) - 1)
        if config.resblock_updown and (x.shape[2] % factor or x.shape[3] % factor):
            raise ShapeError(
                f"The latents are {x.shape[2]}x{x.shape[3]}, this UNet needs multiples of {factor}."
            )
        width = config.context_dim
        if width is not None and (context is None or context.shape[-1] != width):
            found = (
                "no text embeddings were given"
                if context is None
                else f"the text embeddings are {context.shape[-1]} wide"
            )
            raise FamilyMismatch(
                f"This net reads text embeddings {width} wide, but {found}: "
                "the base model and the net are of different families."
            )


class ControlledUNet(Encoder):
    """The UNet that takes residuals (ControlledUnetModel of the original's cldm.py).

    state_dict() keys are those of `model.diffusion_model` in public checkpoints.
    """

    def __init__(self, config: UNetConfig, ops: Any = nn, *, attention: Attention = sdpa) -> None:
        if config.channel_mult[0] != 1:
            raise CldmError(
                f"A UNet's channel_mult starts with 1, this one's is {config.channel_mult}."
            )
        super().__init__(config, ops=ops, attention=attention)
        self.output_blocks = self._build_output_blocks()
        self.out = nn.Sequential(
            ops.GroupNorm(GROUPS, config.model_channels),
            nn.SiLU(),
            zero_module(ops.Conv2d(config.model_channels, config.out_channels, 3, padding=1)),
        )

    @property
    def config(self) -> UNetConfig:
        return self.unet_config

    def _build_output_blocks(self) -> nn.ModuleList:
        config = self.unet_config
        skips = list(self.block_channels)
        channels = skips[-1]
        depths = iter(config.transformer_depth_output)
        blocks = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks[level] + 1):
                out = mult * config.model_channels
                layers: list[nn.Module] = [self._res_block(channels + skips.pop(), out)]
                channels = out
                if depth := next(depths):
                    off = config.self_attention_off(level)
                    layers.append(self._transformer(channels, depth, disable_self_attn=off))
                if level and index == config.num_res_blocks[level]:
                    layers.append(self._upsample(channels))
                blocks.append(TimestepEmbedSequential(*layers))
        return nn.ModuleList(blocks)

    def _upsample(self, channels: int) -> nn.Module:
        if self.unet_config.resblock_updown:
            return self._res_block(channels, channels, up=True)
        return Upsample(channels, channels, use_conv=self.unet_config.conv_resample, ops=self._ops)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None = None,
        control: Residuals | None = None,
        only_mid_control: bool = False,
    ) -> Tensor:
        """The prediction (B, out_channels, h, w) for noisy latents x (B, in_channels, h, w).

        timesteps: (B,), 0 to 999, may be fractional; context: text embeddings (B, M, context_dim);
        y: (B, adm_in_channels) for SDXL. control: residuals to add; with only_mid_control those of
        the skip connections are left out. Raises ShapeError or FamilyMismatch, with the shapes,
        where an input doesn't fit.
        """
        self.check_inputs(x, context)
        control = control or Residuals()
        output = () if only_mid_control else control.output
        self._check_counts(control)
        emb = self.embed(timesteps, y, x.dtype)
        skips = []
        h = x
        for module, residual in zip(
            self.input_blocks, padded(control.input, len(self.input_blocks)), strict=True
        ):
            h = add(module(h, emb, context), residual)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for residual in control.middle:
            h = add(h, residual)
        residuals = list(padded(output, len(skips)))
        for module in self.output_blocks:
            h = torch.cat([h, add(skips.pop(), residuals.pop())], dim=1)
            h = module(h, emb, context, skips[-1].shape[2:] if skips else None)
        out: Tensor = self.out(h.type(x.dtype))
        return out

    def _check_counts(self, control: Residuals) -> None:
        blocks = len(self.input_blocks)
        if len(control.output) not in (0, blocks):
            raise FamilyMismatch(
                f"The control has {len(control.output)} residuals for skip connections and this "
                f"UNet has {blocks}: "
                "the net belongs to another family of base models."
            )


def padded(slot: Slot, length: int) -> Slot:
    """The slot with None behind, up to `length` items."""
    return slot + (None,) * (length - len(slot))


def add(h: Tensor, residual: Tensor | None) -> Tensor:
    """h (B, C, h, w) plus a residual of its size, or of batch 1, or pooled to (B, C, 1, 1).

    Raises ShapeError where the residual has another size: nothing is dropped in silence.
    """
    if residual is None:
        return h
    fits = residual.shape[1] == h.shape[1] and residual.shape[0] in (1, h.shape[0])
    if not fits or residual.shape[2:] not in (h.shape[2:], (1, 1)):
        raise ShapeError(
            f"A control residual of shape {tuple(residual.shape)} can't be added to features of "
            f"shape {tuple(h.shape)}: "
            "make the hint 8 times as large as the latents, and use a net of this base model's "
            "family."
        )
    return h + residual
