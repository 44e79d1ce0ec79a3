"""The frozen UNet and its ControlNet as one function (cldm.py of lllyasviel/ControlNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .controlnet import ControlNet
from .errors import CldmError
from .residuals import guess_mode_scales, weigh
from .unet import ControlledUNet


class ControlLDM(nn.Module):
    """A UNet and a ControlNet, under the names that whole checkpoints give them.

    control_scales: one factor for each residual, the middle last; only_mid_control leaves out the
    skip connections.
    """

    def __init__(
        self, unet: ControlledUNet, control_model: ControlNet, *, only_mid_control: bool = False
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": unet})
        self.control_model = control_model
        self.only_mid_control = only_mid_control
        self.control_scales: Sequence[float] = (1.0,) * control_model.residual_count

    @property
    def diffusion_model(self) -> ControlledUNet:
        return cast(ControlledUNet, self.model["diffusion_model"])

    def set_strength(self, strength: float, *, guess_mode: bool = False) -> None:
        """One scale for all residuals, or in guess mode the ramp of `guess_mode_scales`.

        Guess mode also wants the unconditional side evaluated without a hint: leave "c_concat" out
        of its `cond`.
        """
        count = self.control_model.residual_count
        self.control_scales = (
            guess_mode_scales(strength, count) if guess_mode else (strength,) * count
        )

    def apply_model(
        self, x_noisy: Tensor, t: Tensor, cond: Mapping[str, Sequence[Tensor] | None]
    ) -> Tensor:
        """The UNet's prediction (B, C, h, w), steered by the hint in `cond`.

        cond, as in the original: "c_crossattn" is a list of text embeddings (joined along the
        tokens), "c_concat" a list of hints in [0, 1] (joined along the channels) or None for no
        control; "y" may hold SDXL's vector.
        """
        texts = cond.get("c_crossattn")
        if not isinstance(texts, Sequence) or not texts:
            raise CldmError(
                'cond has no text: give {"c_crossattn": [embeddings (B, tokens, width)], '
                '"c_concat": [hint (B, 3, 8h, 8w)] or None}.'
            )
        context = torch.cat(list(texts), dim=1)
        hints, vectors = cond.get("c_concat"), cond.get("y")
        y = vectors[0] if vectors else None
        control = None
        if hints:
            net = self.control_model
            control = weigh(
                net(x_noisy, None, t, context, y, hint=torch.cat(list(hints), dim=1)),
                self.control_scales,
            )
        return self.diffusion_model(  # type: ignore[no-any-return]
            x_noisy, t, context, y, control=control, only_mid_control=self.only_mid_control
        )
