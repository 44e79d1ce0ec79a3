"""The UNet of latent diffusion, and its encoder alone, as a ControlNet copies it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .blocks import timestep_embedding, zero_module
from .config import GROUPS, UNetConfig
from .errors import CldmError, FamilyMismatch, ShapeError
from .parts import Parts
from .projections import Patches, patched
from .residuals import Residuals, Slot


class Encoder(nn.Module):
    """What a UNet and its trainable copy share: time embedding, input blocks and middle block."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        config = self.unet_config = parts.config
        self.time_embed = parts.embedding(config.model_channels)
        if config.adm_in_channels is not None:
            self.label_emb = nn.Sequential(parts.embedding(config.adm_in_channels))
        self.input_blocks, self.block_channels = parts.input_blocks()
        self.middle_block = parts.middle_block(self.block_channels[-1])

    def embed(
        self,
        timesteps: Tensor,
        y: Tensor | None,
        dtype: torch.dtype,
        extra: Tensor | None = None,
    ) -> Tensor:
        """The time embedding (B, 4 * model_channels), with y where the family has one.

        extra: what a kind of net adds to it, before y.
        """
        emb: Tensor = self.time_embed(
            timestep_embedding(timesteps, self.unet_config.model_channels).to(dtype)
        )
        emb = emb if extra is None else emb + extra
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

    def check_inputs(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None, *, several_texts: bool = False
    ) -> None:
        """Raises ShapeError or FamilyMismatch, with the shapes, for what this net can't take.

        several_texts: whether there may be a multiple of the pictures in texts.
        """
        config = self.unet_config
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(
                f"The latents have shape {tuple(x.shape)}, expected "
                f"(B, {config.in_channels}, h, w)."
            )
        factor = 2 ** (len(config.channel_mult) - 1)
        if config.resblock_updown and (x.shape[2] % factor or x.shape[3] % factor):
            raise ShapeError(
                f"The latents are {x.shape[2]}x{x.shape[3]}, this UNet needs multiples of {factor}."
            )
        if timesteps.shape not in ((1,), x.shape[:1]):
            raise ShapeError(
                f"The timesteps have shape {tuple(timesteps.shape)}, expected ({x.shape[0]},): one "
                "for each picture."
            )
        if config.context_dim is not None:
            self._check_context(x.shape[0], context, config.context_dim, several_texts)

    def _check_context(self, batch: int, context: Tensor | None, width: int, several: bool) -> None:
        if context is None or context.shape[-1] != width:
            found = "no text embeddings were given"
            if context is not None:
                found = f"the text embeddings are {context.shape[-1]} wide"
            raise FamilyMismatch(
                f"This net reads text embeddings {width} wide, but {found}: "
                "the base model and the net are of different families."
            )
        count = context.shape[0]
        fits = count == batch or (several and count > 0 and count % batch == 0)
        if context.ndim != 3 or not fits:
            raise ShapeError(
                f"The text embeddings have shape {tuple(context.shape)}, expected "
                f"({batch}, tokens, {width}): one text for each picture."
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
        parts = Parts(config, ops, attention)
        super().__init__(parts)
        self.output_blocks = parts.output_blocks(self.block_channels)
        self.out = nn.Sequential(
            ops.GroupNorm(GROUPS, config.model_channels),
            nn.SiLU(),
            zero_module(ops.Conv2d(config.model_channels, config.out_channels, 3, padding=1)),
        )

    @property
    def config(self) -> UNetConfig:
        return self.unet_config

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        y: Tensor | None = None,
        control: Residuals | None = None,
        only_mid_control: bool = False,
        patches: Patches = (),
    ) -> Tensor:
        """The prediction (B, out_channels, h, w) for noisy latents x (B, in_channels, h, w).

        timesteps: (B,), 0 to 999, may be fractional; context: text embeddings (B, M, context_dim);
        y: (B, adm_in_channels) for SDXL. control: residuals to add; with only_mid_control those of
        the skip connections are left out. patches: mappings from the path of an attention's
        projection to what its input becomes (ControlNet-LLLite); several of one path run in their
        order, each on the result of the one before. Raises ShapeError or FamilyMismatch, with the
        shapes, where an input doesn't fit.
        """
        self.check_inputs(x, timesteps, context)
        control = control or Residuals()
        self._check_counts(control)
        if only_mid_control:
            control = replace(control, output=())
        emb = self.embed(timesteps, y, x.dtype)
        with patched(self, patches):
            return self._predict(x, emb, context, control)

    def _predict(
        self, x: Tensor, emb: Tensor, context: Tensor | None, control: Residuals
    ) -> Tensor:
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
        residuals = list(padded(control.output, len(skips)))
        for module in self.output_blocks:
            h = torch.cat([h, add(skips.pop(), residuals.pop())], dim=1)
            h = module(h, emb, context, skips[-1].shape[2:] if skips else None)
        out: Tensor = self.out(h.type(x.dtype))
        return out

    def _check_counts(self, control: Residuals) -> None:
        blocks = len(self.input_blocks)
        if len(control.input) > blocks:
            raise FamilyMismatch(
                f"The control adds to the encoder's block {len(control.input) - 1} and this UNet's "
                f"last is {blocks - 1}: "
                "the adapter belongs to another family of base models."
            )
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
    return h + residual.to(h.dtype)
