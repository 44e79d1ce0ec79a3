"""CONTROL_NETs: what the host's sampler asks for residuals, around a net of the core."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...cldm_core import Residuals, weigh
from ...cldm_core.masks import mask_residuals, residual_sizes
from .checks import check_model
from .residuals import (
    HostResiduals,
    conditional_only,
    merged,
    previous_control,
    rows_of,
    spread,
    to_host,
)
from .shape import Shape


def patcher_for(module: torch.nn.Module, device: torch.device) -> Any:
    """The module under the host's memory management."""
    # Newer hosts re-bind the name at start to the class that fits the machine.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if hasattr(comfy.model_management, "archive_model_dtypes"):
        comfy.model_management.archive_model_dtypes(module)
    return patcher(
        module, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


class Origin(NamedTuple):
    """Where a net's weights come from: name and metadata of the file, and how it stores them."""

    name: str
    metadata: Mapping[str, str]
    dtype: torch.dtype


class Place(NamedTuple):
    """Where a net's part of the control goes: strength of the step, latents, prompts in the batch.

    `options` go on to the UNet and may be added to.
    """

    strength: float
    x: Tensor
    batched_number: int
    options: dict[str, Any]


class HostControl(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A CONTROL_NET around a ControlNet or a T2I-Adapter; other families override a method or two.

    Copies share the net and its patcher. What belongs to one sampling (hint features, the model's
    schedule) is set in `pre_run` and dropped when the sampling ends, also by an interrupt or an
    error.
    """

    def __init__(self, patcher: Any, compute_type: torch.dtype) -> None:
        super().__init__()
        self.patcher = patcher
        self.compute_type = compute_type
        self.shape = Shape()
        self.source: Origin | None = None
        self.model_sampling: Any = None
        self.sigma_of: Any = None
        self.features: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    @property
    def net(self) -> Any:
        """The net of the core."""
        return self.patcher.model

    def copy(self) -> HostControl:
        """The same net with settings of its own; the host's apply nodes call this."""
        other = type(self)(self.patcher, self.compute_type)
        self._copy_to(other)
        return other

    def _copy_to(self, other: HostControl) -> None:
        self.copy_to(other)
        other.shape, other.source = self.shape, self.source

    def get_models(self) -> list[Any]:
        """What the host must have on the device before it samples."""
        return [*super().get_models(), self.patcher]

    def check_settings(self) -> None:
        """Raises CldmError where something is missing without which the net can't be applied."""

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step; refuses a model of another family."""
        self.check_settings()
        check_model(self.net, model)
        super().pre_run(model, percent_to_timestep_function)
        self.features.clear()
        self.model_sampling = model.model_sampling
        self.sigma_of = percent_to_timestep_function
        self._cleanup_with(getattr(model, "current_patcher", None))

    def _cleanup_with(self, patcher: Any) -> None:
        """Has the sampled model call `_drop` when its sampling ends.

        The host calls `cleanup` at a normal end only. Hooks on the conditioning would do as well,
        but newer hosts then load the base model a second time.
        """
        if patcher is None:  # somebody samples without the host's sampler
            return
        key = f"controlnet_cldm_{id(self)}"

        def drop(cleaned: Any) -> None:
            cleaned.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
            self._drop()

        patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
        patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, drop)

    def _drop(self) -> None:
        super().cleanup()
        self.model_sampling = self.sigma_of = None
        self.features.clear()

    def cleanup(self) -> None:
        """Drops what belongs to one sampling."""
        self._drop()

    def get_control(
        self,
        x_noisy: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
    ) -> HostResiduals | None:
        """Residuals of this net and of those before it in the chain, in the host's form.

        x_noisy: (B, C, h, w), not yet scaled; t: the sigma of each row; cond: what the UNet gets
        besides.
        """
        previous = previous_control(self, x_noisy, t, cond, batched_number, transformer_options)
        if (
            self.timestep_range is not None
            and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]
        ):
            return previous
        strength = self.strength * self.shape.factor(t[0], self.sigma_of)
        if strength == 0:
            return previous
        found = self._evaluate(x_noisy, t, cond, batched_number)
        place = Place(strength, x_noisy, batched_number, transformer_options)
        return merged(self._own(found, place), previous)

    def _evaluate(self, x: Tensor, t: Tensor, cond: dict[str, Any], batched_number: int) -> Any:
        """What the net makes of the latents."""
        dtype = self.compute_type
        context = cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x.device, dtype)
        y = cond.get("y")
        return self.net(
            self.model_sampling.calculate_input(t, x).to(dtype),
            self._features(x, batched_number),
            self.model_sampling.timestep(t).to(dtype),
            context,
            None if y is None else y.to(dtype),
        )

    def _own(self, found: Residuals, place: Place) -> HostResiduals | None:
        """This net's part of the control."""
        if self.pooled:
            # The author's advice for such nets (README of ControlNet 1.1, shuffle).
            found = conditional_only(found, place.options, place.batched_number)
        found = weigh(found, place.strength)
        mask = self.shape.mask_for(place.x.shape[0], place.batched_number)
        if mask is not None:
            height, width = place.x.shape[-2:]
            known = residual_sizes(self.net.unet_config, height, width) if self.pooled else None
            found = mask_residuals(found, mask, known)
        return to_host(found)

    @property
    def pooled(self) -> bool:
        """Whether the net's residuals are averaged over the picture."""
        return bool(getattr(self.net.config, "global_average_pooling", False))

    def _features(self, x: Tensor, batched_number: int) -> Any:
        """The encoded hints for latents x, computed once per sampling, size and hint."""
        hints = self._hints()
        height, width = (side * self.compression_ratio for side in x.shape[-2:])
        count = max(1, x.shape[0] // batched_number)  # the host uses as many hints as pictures
        key = (height, width, count, x.device)
        # Packs that work in tiles put another hint in between two steps.
        if key not in self.features or not _same(self.features[key][0], hints):
            fitted = {
                name: self._fitted(hint[:count], width, height).to(x.device, self.compute_type)
                for name, hint in hints.items()
            }
            self.features[key] = (hints, self._encode(fitted))
        most = max(min(count, hint.shape[0]) for hint in hints.values())
        return spread(self.features[key][1], rows_of(most, x.shape[0], batched_number))

    def _hints(self) -> dict[Any, Tensor]:
        """The hints (B, C, H, W) in [0, 1], by their type where the net knows types."""
        return {None: self.cond_hint_original}

    def _fitted(self, hint: Tensor, width: int, height: int) -> Tensor:
        """The hint in the size that the latents need, as the host fits it."""
        # SDXL's T2I-Adapters look at squares of 16 pixels.
        multiple = getattr(self.net.config, "unshuffle", 1)
        width, height = (-(-side // multiple) * multiple for side in (width, height))
        fitted: Tensor = comfy.utils.common_upscale(
            self._channels(hint), width, height, self.upscale_algorithm, "center"
        )
        return fitted

    def _encode(self, hints: dict[Any, Tensor]) -> Any:
        (hint,) = hints.values()
        return self.net.encode_hint(hint)

    @property
    def hint_channels(self) -> int:
        """How many channels the net's hints have."""
        channels: int = self.net.config.hint_channels
        return channels

    def _channels(self, hint: Tensor) -> Tensor:
        """A grey hint as RGB, and one with transparency without it."""
        wanted = self.hint_channels
        if hint.shape[1] == 1:
            return hint.expand(-1, wanted, -1, -1)
        # An adapter for grey pictures takes the mean of the colours itself.
        return hint[:, : max(wanted, 3)]

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> HostControl:
        """A copy with a net of its own for another GPU, as hosts of late 2026 ask for."""
        other = type(self)(
            patcher_for(copy.deepcopy(self.patcher.model), load_device), self.compute_type
        )
        self._copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


def _same(first: dict[Any, Tensor], second: dict[Any, Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[k] is second[k] for k in first)
