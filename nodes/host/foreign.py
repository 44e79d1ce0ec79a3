"""CONTROL_NETs of the host's own loader, with this pack's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from ...cldm_core import CldmError, FamilyMismatch, Residuals, ShapeError
from ...cldm_core.block_text import parse_blocks
from ...cldm_core.config import UNetConfig
from ...cldm_core.inpainting import without_masked
from ...cldm_core.masks import (
    masked,
    masked_tokens,
    residual_sizes,
    token_grid,
    without_overshoot,
)
from ...cldm_core.residuals import map_residuals
from .checks import unet_config_of
from .clock import Moment
from .residuals import HostResiduals, from_host
from .rows import Batch
from .settings import BALANCED, Settings
from .sizes import follow_blocks
from .steered import Call, Place, Size, Steered

NO_MASK = (
    "This net reads no mask beside its picture: disconnect inpaint_mask, and mark the masked "
    "pixels with Inpaint Hint."
)
OF_HINT = ("cond_hint", "control_input")
"""What controls of the host keep of their hint from call to call."""


class HostForeign(Steered):
    """A control of the host around which this pack's settings are put; the rest is its own affair.

    It computes all rows and fits its hint as the host does.
    """

    leaves_out_rows = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        super().__init__()
        self.model_config: UNetConfig | None = None
        self._windows: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {}

    # Packs that work in tiles put a part of the hint in here.
    @property
    def cond_hint_original(self) -> Any:
        """The hint as it was given, kept by the control inside."""
        return self.inner.cond_hint_original

    @cond_hint_original.setter
    def cond_hint_original(self, hint: Any) -> None:
        self.inner.cond_hint_original = hint

    @property
    def cond_hint(self) -> Any:
        """The hint in the size of the latents, kept by the control inside."""
        return self.inner.cond_hint

    @cond_hint.setter
    def cond_hint(self, hint: Any) -> None:
        self.inner.cond_hint = hint

    # Nets have ways of their own with it: some soften it.
    @property
    def strength(self) -> Any:
        """The strength, put on by the control inside."""
        return self.inner.strength

    @strength.setter
    def strength(self, strength: Any) -> None:
        self.inner.strength = strength

    @property
    def title(self) -> str:
        return f"a net of ComfyUI's own loader: {type(self.inner).__name__}"

    def copy(self) -> HostForeign:
        """The same net with settings of its own."""
        other = HostForeign(self.inner.copy())
        self.copy_to(other)
        return other

    def with_mask(self, hint: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The hint of an inpainting net without its masked pixels, and the mask for the host."""
        if not getattr(self.inner, "concat_mask", False):
            raise CldmError(NO_MASK)
        picture, kept = without_masked(without_overshoot(hint), mask)
        return picture, [kept]

    def set_cond_hint(self, hint: Any, strength: float, window: Any, **options: Any) -> HostForeign:
        """Hint and strength for the control inside; the window is kept by this one."""
        self.timestep_percent_range = window
        self.inner.set_cond_hint(hint, strength, (0.0, 1.0), **options)
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

    def check_settings(self) -> None:
        check_foreign(self.settings)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step."""
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)
        with suppress(FamilyMismatch):  # transformers keep their size
            self.model_config = unet_config_of(model)

    def _prepare(self, call: Call) -> None:
        if self.model_config is not None:
            follow_blocks(call.options, call.cond, residual_sizes(self.model_config, *call.size))

    def _drop(self) -> None:
        self.inner.cleanup()
        super()._drop()
        self.model_config = self.weights = None
        self._windows.clear()

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> HostForeign:
        """A copy with a net of its own for another GPU, as hosts of late 2026 ask for."""
        other = HostForeign(self.inner.deepclone_multigpu(load_device))
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other

    def _sources(self, call: Call) -> tuple[Tensor, ...]:
        hint = self.cond_hint_original
        return (hint,) if isinstance(hint, Tensor) else ()  # packs wrap theirs

    def _computed(self, call: Call, place: Place) -> Residuals:
        with self._hints_of(place.batch):
            found = self.inner.get_control(call.x, call.t, call.cond, call.prompts, call.options)
        return from_host(found or {})

    @contextmanager
    def _hints_of(self, batch: Batch) -> Iterator[None]:
        """Gives the control inside, which knows no windows, the hints of a window's pictures."""
        inner, hint = self.inner, self.inner.cond_hint_original
        windowed = len(batch.frames) < batch.total
        # What is there already was put there by a pack.
        if not windowed or inner.cond_hint is not None or _count(hint) == 1:
            yield
            return
        numbers = [frame % len(hint) for frame in batch.frames]
        masks = inner.extra_concat_orig
        kept = self._windows.setdefault((batch.frames, len(batch.prompts)), {})
        vars(inner).update(kept)
        inner.cond_hint_original = hint[numbers]
        inner.extra_concat_orig = [mask[[n % len(mask) for n in numbers]] for mask in masks]
        try:
            yield
            kept.update({name: vars(inner)[name] for name in OF_HINT if name in vars(inner)})
        finally:
            inner.cond_hint_original, inner.extra_concat_orig = hint, masks
            inner.cond_hint = None

    def _own(self, call: Call, place: Place, now: Moment) -> HostResiduals | None:
        found = self._found(call, place, now)
        self.weights = self._weights_of(found)
        given = float(self.strength)
        return self._shaped(found, call, place, now, self.weights, None, given=given)

    def _weights_of(self, found: Residuals) -> tuple[float, ...] | None:
        """The user's weights for as many residuals as the net gave."""
        if not self.settings.blocks.strip():
            return None
        inputs = sum(item is not None for item in found.input)
        return parse_blocks(self.settings.blocks, inputs + len(found.output) + len(found.middle))

    def _masked(self, found: Residuals, mask: Tensor, call: Call, sizes: Any) -> Residuals:
        return map_residuals(lambda item: _masked(item, mask, call.size), found)


def _count(hint: Any) -> int:
    """How many pictures a hint has; 1 for what a pack has wrapped."""
    return len(hint) if isinstance(hint, Tensor) else 1


def check_foreign(settings: Settings) -> None:
    """Raises CldmError for a mode that has no weights for nets of other families."""
    if settings.mode != BALANCED and not settings.blocks.strip():
        raise CldmError(
            "This net was loaded by ComfyUI's own loader, and nobody defines soft weights for its "
            "family: choose balanced, or give weights of your own with Control Weights."
        )


def _masked(item: Tensor, mask: Tensor, size: Size) -> Tensor:
    """A residual, of pictures or of tokens, times the mask."""
    if item.ndim == 4:
        return masked(item, mask)
    if item.ndim == 3:
        return masked_tokens(item, mask, _grid(item.shape[1], size))
    raise ShapeError(
        f"A mask can't be put on this control net: its residuals have the shape "
        f"{tuple(item.shape)}, neither pictures nor tokens of one. Disconnect the mask."
    )


def _grid(tokens: int, size: Size) -> Size:
    grid = token_grid(tokens, size)
    if grid is None:
        raise ShapeError(
            f"A mask can't be put on this control net: it gives {tokens} tokens for latents of "
            f"{size[0]}x{size[1]}, and which lie where can't be told. Disconnect the mask."
        )
    return grid
