"""A UNet's layers by its configuration, with the layer classes and the attention handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .attention import Attention
from .blocks import Downsample, ResBlock, SpatialTransformer, TimestepEmbedSequential, Upsample
from .config import UNetConfig


@dataclass(frozen=True)
class Parts:
    """Makes the blocks of one net; it is dropped afterwards, so that nets can be copied whole."""

    config: UNetConfig
    ops: Any
    attention: Attention

    def embedding(self, channels: int) -> nn.Sequential:
        """Two linear layers to the width of the time embedding."""
        out = self.config.time_embed_dim
        return nn.Sequential(self.ops.Linear(channels, out), nn.SiLU(), self.ops.Linear(out, out))

    def res_block(self, channels: int, out_channels: int, **resample: bool) -> ResBlock:
        return ResBlock(
            channels,
            self.config.time_embed_dim,
            out_channels,
            dropout=self.config.dropout,
            use_scale_shift_norm=self.config.use_scale_shift_norm,
            ops=self.ops,
            **resample,
        )

    def transformer(
        self, channels: int, depth: int, *, disable_self_attn: bool
    ) -> SpatialTransformer:
        heads, head_channels = self.config.heads(channels)
        return SpatialTransformer(
            channels,
            self.config.context_dim,
            heads,
            head_channels,
            depth,
            use_linear=self.config.use_linear_in_transformer,
            disable_self_attn=disable_self_attn,
            attention=self.attention,
            ops=self.ops,
        )

    def level_block(self, channels: int, level: int, depth: int) -> list[nn.Module]:
        """A residual block to the level's width, and a transformer behind it unless depth is 0."""
        out = self.config.channel_mult[level] * self.config.model_channels
        layers: list[nn.Module] = [self.res_block(channels, out)]
        if depth:
            off = self.config.self_attention_off(level)
            layers.append(self.transformer(out, depth, disable_self_attn=off))
        return layers

    def downsample(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res_block(channels, channels, down=True)
        return Downsample(channels, channels, use_conv=self.config.conv_resample, ops=self.ops)

    def upsample(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res_block(channels, channels, up=True)
        return Upsample(channels, channels, use_conv=self.config.conv_resample, ops=self.ops)

    def input_blocks(self) -> tuple[nn.ModuleList, tuple[int, ...]]:
        """The encoder's blocks, and how many channels each gives."""
        config, channels = self.config, self.config.model_channels
        first = self.ops.Conv2d(config.in_channels, channels, 3, padding=1)
        blocks, widths = [TimestepEmbedSequential(first)], [channels]
        depths = iter(config.transformer_depth)
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks[level]):
                blocks.append(
                    TimestepEmbedSequential(*self.level_block(channels, level, next(depths)))
                )
                widths.append(channels := mult * config.model_channels)
            if level < len(config.channel_mult) - 1:
                blocks.append(TimestepEmbedSequential(self.downsample(channels)))
                widths.append(channels)
        return nn.ModuleList(blocks), tuple(widths)

    def middle_block(self, channels: int) -> TimestepEmbedSequential:
        depth, off = self.config.transformer_depth_middle, self.config.disable_middle_self_attn
        layers: list[nn.Module] = [self.res_block(channels, channels)]
        if depth >= 0:
            layers.append(self.transformer(channels, depth, disable_self_attn=off))
            layers.append(self.res_block(channels, channels))
        return TimestepEmbedSequential(*layers)

    def output_blocks(self, widths: tuple[int, ...]) -> nn.ModuleList:
        """The decoder's blocks, for an encoder whose blocks give `widths` channels."""
        config, skips, channels = self.config, list(widths), widths[-1]
        depths = iter(config.transformer_depth_output)
        blocks = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks[level] + 1):
                layers = self.level_block(channels + skips.pop(), level, next(depths))
                channels = mult * config.model_channels
                if level and index == config.num_res_blocks[level]:
                    layers.append(self.upsample(channels))
                blocks.append(TimestepEmbedSequential(*layers))
        return nn.ModuleList(blocks)
