"""CONTROL_NETs of the host's own loader, with this pack's schedule and mask."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
from torch import Tensor

from ...cldm_core import ShapeError
from ...cldm_core.masks import masked, resized
from .residuals import HostResiduals, merged, previous_control
from .shape import Shape


class HostForeign(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A control of the host around which schedule and mask are put; the rest is its own affair."""

    def __init__(self, inner: Any, shape: Shape) -> None:
        super().__init__()
        self.inner = inner
        self.shape = shape
        self.sigma_of: Any = None

    def copy(self) -> HostForeign:
        """The same net with settings of its own."""
        other = HostForeign(self.inner.copy(), self.shape)
        self.copy_to(other)
        return other

    def set_cond_hint(self, *args: Any, **options: Any) -> HostForeign:
        """Hint, strength and window, for the control inside."""
        self.inner.set_cond_hint(*args, **options)
        return self

    def get_models(self) -> list[Any]:
        """What the host must have on the device before it samples."""
        return [*super().get_models(), *self.inner.get_models()]

    def get_extra_hooks(self) -> list[Any]:
        """The hooks of the chain, those of the control inside among them."""
        return [*super().get_extra_hooks(), *self.inner.get_extra_hooks()]

    def inference_memory_requirements(self, dtype: Any) -> Any:
        """Bytes that the host must keep free while it samples."""
        own = self.inner.inference_memory_requirements(dtype)
        return own + super().inference_memory_requirements(dtype)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step."""
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)
        self.sigma_of = percent_to_timestep_function

    def cleanup(self) -> None:
        """Drops what belongs to one sampling."""
        self.inner.cleanup()
        self.sigma_of = None
        super().cleanup()

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> HostForeign:
        """A copy with a net of its own for another GPU, as hosts of late 2026 ask for."""
        other = HostForeign(self.inner.deepclone_multigpu(load_device), self.shape)
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other

    def get_control(
        self,
        x_noisy: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
    ) -> HostResiduals | None:
        """The control inside, shaped, and those before it in the chain."""
        previous = previous_control(self, x_noisy, t, cond, batched_number, transformer_options)
        factor = self.shape.factor(t[0], self.sigma_of)
        if factor == 0:
            return previous
        own = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        mask = self.shape.mask_for(x_noisy.shape[0], batched_number)
        return merged(own and _shaped(own, factor, mask, x_noisy), previous)


def _shaped(control: HostResiduals, factor: float, mask: Tensor | None, x: Tensor) -> HostResiduals:
    """The control times factor and mask, in tensors of its own."""
    return {
        slot: [None if item is None else _weighed(item * factor, mask, x) for item in items]
        for slot, items in control.items()
    }


def _weighed(item: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
    if mask is None:
        return item
    if item.ndim == 4:
        return masked(item, mask)
    if item.ndim == 3:
        weights = resized(mask.to(item.device), _token_grid(item.shape[1], x))
        return item * weights.to(item.dtype).flatten(1)[:, :, None]
    raise ShapeError(
        f"A mask can't be put on this control net: its residuals have the shape "
        f"{tuple(item.shape)}, neither pictures nor tokens of one. Disconnect the mask."
    )


def _token_grid(tokens: int, x: Tensor) -> tuple[int, int]:
    """Rows and columns of a transformer's picture tokens, one for each 1x1 or 2x2 latents."""
    height, width = x.shape[-2:]
    for patch in (2, 1):
        grid = (-(-height // patch), -(-width // patch))
        if grid[0] * grid[1] == tokens:
            return grid
    raise ShapeError(
        f"A mask can't be put on this control net: it gives {tokens} tokens for latents of "
        f"{height}x{width}, and which lie where can't be told. Disconnect the mask."
    )
