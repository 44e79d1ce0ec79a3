"""Building blocks of the latent-diffusion UNet.

After openaimodel.py and attention.py of CompVis/latent-diffusion.
Attribute names are checkpoint names. `ops` gives the layer classes (torch.nn, or a host's casting
layers).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention
from .config import GROUPS

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding (N, dim) of timesteps (N,), which may be fractional; cosines first."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # In the original's order of operations: another one differs in the last bit.
    angles = timesteps[:, None].float() * torch.exp(-math.log(max_period) * steps / half)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def zero_module(module: M) -> M:
    """The module with all of its parameters set to zero.

    A zero convolution adds nothing until it is trained.
    """
    for parameter in module.parameters():
        parameter.detach().zero_()
    return module


class TimestepEmbedSequential(nn.Sequential):
    """Passes each child what it reads: residual blocks the time embedding, transformers the text.

    `size` is what an Upsample at the end must reach: where a level's size was odd, twice the half
    is one too many.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, emb: Tensor, context: Tensor | None, size: torch.Size | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


def repeated(x: Tensor, rows: int) -> Tensor:
    """x (U, ...) tiled along the batch to `rows` rows, a multiple of U."""
    if x.shape[0] == rows:
        return x
    return x.repeat(rows // x.shape[0], *[1] * (x.ndim - 1))


class Upsample(nn.Module):
    """Twice the size by nearest neighbours, then a 3x3 convolution unless `use_conv` is off."""

    def __init__(self, channels: int, out_channels: int, *, use_conv: bool, ops: Any = nn) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, out_channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """x (B, C, h, w) to `size` (the last two numbers), 2h x 2w where it is None."""
        if size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=size, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the size by a 3x3 convolution of stride 2, or by averaging where `use_conv` is off."""

    def __init__(self, channels: int, out_channels: int, *, use_conv: bool, ops: Any = nn) -> None:
        super().__init__()
        self.op: nn.Module
        if use_conv:
            self.op = ops.Conv2d(channels, out_channels, 3, stride=2, padding=1)
        else:
            self.op = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Residual block with a time embedding.

    `up` or `down` resamples inside it (resblock_updown).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        up: bool = False,
        down: bool = False,
        ops: Any = nn,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            ops.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            ops.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.resample = _resampler(channels, up=up, down=down)
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(ops.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if channels != out_channels:
            self.skip_connection = ops.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, h, w), emb (B, E) to (B, C', h, w).

        Where several texts were given for each picture x has become a multiple of emb.
        """
        if self.resample is None:
            h = self.in_layers(x)
        else:
            h = self.in_layers[2](self.resample(self.in_layers[1](self.in_layers[0](x))))
            x = self.resample(x)
        emb_out = self.emb_layers(emb).type(h.dtype)[:, :, None, None]
        if emb_out.shape[0] > 1:
            emb_out = repeated(emb_out, h.shape[0])
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb_out)
        out: Tensor = self.skip_connection(x) + h
        return out


def _resampler(channels: int, *, up: bool, down: bool) -> nn.Module | None:
    if up:
        return Upsample(channels, channels, use_conv=False)
    if down:
        return Downsample(channels, channels, use_conv=False)
    return None


class GEGLU(nn.Module):
    """Linear layer gated by the GELU of its other half (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int, ops: Any = nn) -> None:
        super().__init__()
        self.proj = ops.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron of a transformer block, four times as wide inside."""

    def __init__(self, dim: int, ops: Any = nn) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, 4 * dim, ops), nn.Dropout(0.0), ops.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context, or to x itself where there is none."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        heads: int,
        head_channels: int,
        *,
        attention: Attention,
        ops: Any = nn,
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads, self.attention = heads, attention
        self.to_q = ops.Linear(dim, inner, bias=False)
        self.to_k = ops.Linear(context_dim, inner, bias=False)
        self.to_v = ops.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(ops.Linear(inner, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, dim), context (B, M, context_dim) to (B, N, dim)."""
        context = x if context is None else context
        mixed = self.attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        out: Tensor = self.to_out(mixed)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; a norm before and a skip around each."""

    def __init__(
        self,
        dim: int,
        context_dim: int | None,
        heads: int,
        head_channels: int,
        *,
        disable_self_attn: bool = False,
        attention: Attention,
        ops: Any = nn,
    ) -> None:
        super().__init__()
        self.disable_self_attn = disable_self_attn
        context_dim = dim if context_dim is None else context_dim
        first = context_dim if disable_self_attn else dim
        self.attn1 = CrossAttention(dim, first, heads, head_channels, attention=attention, ops=ops)
        self.ff = FeedForward(dim, ops)
        self.attn2 = CrossAttention(
            dim, context_dim, heads, head_channels, attention=attention, ops=ops
        )
        self.norm1 = ops.LayerNorm(dim)
        self.norm2 = ops.LayerNorm(dim)
        self.norm3 = ops.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (B, N, dim), context (B, M, context_dim) to (B, N, dim).

        With k B texts x becomes (k B, N, dim): up to the first look at a text, pictures with
        several texts are computed once.
        """
        rows = x.shape[0] if context is None else context.shape[0]
        if self.disable_self_attn:
            x = repeated(x, rows)
        x = self.attn1(self.norm1(x), context if self.disable_self_attn else None) + x
        x = repeated(x, rows)
        x = self.attn2(self.norm2(x), context) + x
        out: Tensor = self.ff(self.norm3(x)) + x
        return out


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map, with the text as context."""

    def __init__(
        self,
        channels: int,
        context_dim: int | None,
        heads: int,
        head_channels: int,
        depth: int,
        *,
        use_linear: bool,
        disable_self_attn: bool = False,
        attention: Attention,
        ops: Any = nn,
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.use_linear = use_linear
        self.norm = ops.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, inner) if use_linear else ops.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner,
                context_dim,
                heads,
                head_channels,
                disable_self_attn=disable_self_attn,
                attention=attention,
                ops=ops,
            )
            for _ in range(depth)
        )
        self.proj_out = zero_module(
            ops.Linear(inner, channels) if use_linear else ops.Conv2d(inner, channels, 1)
        )

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (B, C, h, w), context (B, M, context_dim) to (B, C, h, w), (k B, ...) for k B texts."""
        height, width = x.shape[-2:]
        h = self.enter(x)
        h = rearrange(h, "b c h w -> b (h w) c").contiguous()
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height, w=width).contiguous()
        if not self.use_linear:
            h = self.proj_out(h)
        out: Tensor = h + repeated(x, h.shape[0])
        return out

    def enter(self, x: Tensor) -> Tensor:
        """x normed, and projected where a convolution does it; training puts its own here."""
        h: Tensor = self.norm(x)
        return h if self.use_linear else self.proj_in(h)
