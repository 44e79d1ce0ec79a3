"""What this pack's controls share: when, where and on which rows they act."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.controlnet
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...cldm_core import Residuals, weigh
from ...cldm_core.masks import mask_residuals
from ...cldm_core.record import ControlRecord
from ...cldm_core.residuals import spread_rows, weigh_rows
from .applied import Applied
from .clock import Clock, Moment
from .lazy import LazyResiduals, StreamedResiduals, may_be_skipped
from .residuals import HostResiduals, merged, to_host
from .reuse import Reuse
from .rows import Batch, row_hooks
from .settings import STEPS, Settings

Size = tuple[int, int]
Controls = HostResiduals | LazyResiduals | StreamedResiduals


@dataclass(frozen=True, eq=False)
class Call:
    """One request of the host's sampler, as `get_control` gets it.

    x: (B, C, h, w), not yet scaled; t: the sigma of each row; cond: what the UNet gets besides;
    prompts: how many are in the batch; options: the transformer options, which may be added to.
    """

    x: Tensor
    t: Tensor
    cond: dict[str, Any]
    prompts: int
    options: dict[str, Any]

    @property
    def batch(self) -> Batch:
        """The rows."""
        return Batch.of(self.options, self.x, self.prompts)

    @property
    def size(self) -> Size:
        """Height and width of the latents."""
        return self.x.shape[-2], self.x.shape[-1]


@dataclass(frozen=True)
class Place:
    """Where a net's part of the control goes.

    rows: which of the batch get one; factors: theirs.
    """

    strength: float
    batch: Batch
    rows: tuple[int, ...]
    factors: tuple[float, ...]

    @property
    def whole(self) -> bool:
        """Whether every row gets the control."""
        return len(self.rows) == len(self.batch)


class Steered(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A control with this pack's settings.

    What belongs to one sampling is made in `pre_run` and dropped when the sampling ends, also by an
    interrupt or an error. In between, each call of the UNet goes this way; subclasses override what
    their nets do otherwise:

        get_control         the host asks for the residuals
          _prepare          what must be done before the UNet begins
          _begun            computes at once, or begins to beside the UNet's encoder; where a cache
                            may skip the UNet it is left until the UNet asks (LazyResiduals)
            _control        strength of now, rows and their factors; sum with the chain before
              _own          this net's part
                _found      the net's residuals, used again or
                  _computed   computed
                _shaped     with strength, weights, factors and mask, in the whole batch
    """

    leaves_out_rows = True
    """Whether rows without control can be left out of the computation."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()
        self.applied: Applied | None = None
        self.record: ControlRecord | None = None
        self.clock: Clock | None = None
        self.weights: tuple[float, ...] | None = None
        self.reuse = Reuse(1)
        self.blacks: dict[Batch, tuple[bool, ...]] = {}
        self.extra_hooks = row_hooks()

    def copy_to(self, other: Any) -> None:
        """Gives another control the same settings."""
        super().copy_to(other)
        other.settings, other.applied, other.record = self.settings, self.applied, self.record

    def get_extra_hooks(self) -> list[Any]:
        """The hooks that conditionings need; not this control's own.

        The host reads those from `extra_hooks` all the same. Named here, newer hosts would load the
        base model a second time, as hooks on weights need it.
        """
        previous = self.previous_controlnet
        found: list[Any] = [] if previous is None else previous.get_extra_hooks()
        return found

    @property
    def title(self) -> str:
        """Name and family of the net."""
        return type(self).__name__

    @property
    def only_positive(self) -> bool:
        """Whether the negative side goes without."""
        return self.settings.only_positive

    def check_settings(self) -> None:
        """Raises CldmError where something is missing, or set that this net can't do."""

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step."""
        super().pre_run(model, percent_to_timestep_function)
        # The host holds a tensor against these: in its type, or the edges would differ.
        self.timestep_range = tuple(float(torch.tensor(edge)) for edge in self.timestep_range)
        self.clock = Clock(percent_to_timestep_function)
        self.reuse = Reuse(self.settings.reuse)
        self.blacks.clear()
        # AnimateDiff asks for it before it samples in windows, and which one it is stands in the
        # options as well. Outside of a sampling Advanced-ControlNet takes what has it for its own.
        self.sub_idxs = None
        if self.applied is not None:
            self.applied.begin(id(self))
        if self.record is not None:
            self.record.begin()
        self._cleanup_with(getattr(model, "current_patcher", None))

    def _cleanup_with(self, patcher: Any) -> None:
        """Has the sampled model call `_end` when its sampling ends.

        The host calls `cleanup` at a normal end only.
        """
        if patcher is None:  # somebody samples without the host's sampler
            return
        key = f"controlnet_cldm_{id(self)}"

        def end(cleaned: Any) -> None:
            cleaned.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
            self._end()

        patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
        patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, end)

    def _end(self) -> None:
        begun, drift = self.clock is not None, self.reuse.drift
        self._drop()
        if begun and self.applied is not None:
            self.applied.counts.drift += drift
            self.applied.end(id(self))

    def _drop(self) -> None:
        super().cleanup()
        self.clock = None
        self.reuse = Reuse(1)
        self.blacks.clear()
        vars(self).pop("sub_idxs", None)

    def cleanup(self) -> None:
        """Drops what belongs to one sampling."""
        self._end()

    def get_control(
        self,
        x_noisy: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
    ) -> Controls | None:
        """Residuals of this net and of those before it in the chain, in the host's form.

        x_noisy: (B, C, h, w), not yet scaled; t: the sigma of each row; cond: what the UNet gets
        besides.
        """
        call = Call(x_noisy, t, cond, batched_number, transformer_options)
        self._prepare(call)
        if self.may_wait and may_be_skipped(transformer_options):
            return LazyResiduals(lambda: self._control(call))
        return self._begun(call)

    def _begun(self, call: Call) -> Controls | None:
        """The control, where it is computed before the UNet runs, or has begun to be."""
        return self._control(call)

    def _prepare(self, call: Call) -> None:
        """What must be done before the UNet begins."""

    @property
    def may_wait(self) -> bool:
        """Whether the control can be computed when the UNet has begun already."""
        return self.previous_controlnet is None or getattr(
            self.previous_controlnet, "may_wait", False
        )

    def _control(self, call: Call) -> HostResiduals | None:
        previous = self._previous(call)
        clock = self.clock
        if clock is None:  # asked by somebody who doesn't say when a sampling begins
            now, strength, reason = Moment(float(call.t[0]), None, 0), float(self.strength), ""
        else:
            now = clock.at(call.t, call.options)
            strength, reason = self._strength(clock, now)
        batch = call.batch
        blacks = self._blacks(batch)
        factors = self.settings.factors(batch, blacks, only_positive=self.only_positive)
        rows = tuple(row for row, factor in enumerate(factors) if factor)
        counted = len(batch) if strength else 0
        if not rows and strength:
            strength = 0.0
            reason = self.settings.why_nobody(batch, blacks, only_positive=self.only_positive)
        self._tell(now, strength, reason, rows, counted)
        if not strength:
            return previous
        if not self.leaves_out_rows:
            rows = tuple(range(len(batch)))
        place = Place(strength, batch, rows, tuple(factors[row] for row in rows))
        return merged(self._own(call, place, now), previous)

    def _blacks(self, batch: Batch) -> tuple[bool, ...]:
        """Which rows have a black part of the mask, looked at once in a sampling."""
        if self.clock is None:
            return self.settings.black(batch)
        if batch not in self.blacks:
            self.blacks[batch] = self.settings.black(batch)
        return self.blacks[batch]

    def _previous(self, call: Call) -> HostResiduals | None:
        """What the controls before this one in the chain give."""
        chain = self.previous_controlnet
        if chain is None:
            return None
        return chain.get_control(call.x, call.t, call.cond, call.prompts, call.options)  # type: ignore[no-any-return]

    def _strength(self, clock: Clock, now: Moment) -> tuple[float, str]:
        """The strength at a moment, and where it is 0 why."""
        share = clock.share_of_steps(now) if self.settings.unit == STEPS else None
        if share is None:
            begin, end = self.timestep_range
            inside = end <= now.sigma <= begin
        else:
            begin, end = self.timestep_percent_range
            inside = begin <= share <= end
        if not inside:
            return 0.0, "outside of the window"
        if self.weights is not None and not any(self.weights):
            return 0.0, "weights 0"
        strength = float(self.strength)
        schedule = self.settings.schedule
        if schedule is not None:
            strength *= schedule.at(clock.share_of_timesteps(now) if share is None else share)
        return strength, "strength 0"

    def _tell(
        self, now: Moment, strength: float, reason: str, rows: Sequence[int], counted: int
    ) -> None:
        """Notes whether and on which rows the control acts; counted: all that it could act on."""
        if self.applied is not None:
            acting = len(rows) if counted else 0
            self.applied.note(now, acting, counted, computed=not self.leaves_out_rows)
        if self.record is not None and not strength:
            self.record.skip(**self._label(now), reason=reason)

    def _label(self, now: Moment) -> dict[str, Any]:
        name, _, family = self.title.partition(": ")
        step = 0 if now.step is None else now.step
        return {
            "name": name,
            "net": family,
            "step": step,
            "sigma": now.sigma,
            "key": id(self.applied),
        }

    @abstractmethod
    def _own(self, call: Call, place: Place, now: Moment) -> HostResiduals | None:
        """This net's part of the control."""

    def _found(self, call: Call, place: Place, now: Moment) -> Residuals:
        """The net's residuals for the rows of `place`, computed or used again."""
        batch = place.batch
        key = (
            tuple(call.options.get("uuids") or call.options.get("cond_or_uncond") or ()),
            tuple(call.x.shape),
            batch.areas,
            batch.frames,
            place.rows,
        )

        def compute() -> Residuals:
            if self.applied is None:
                return self._computed(call, place)
            with self.applied.timing(call.x.device):
                return self._computed(call, place)

        # Tiles of one size are told apart by their places, or by the hints that were cut for them.
        known = batch.placed or self._tile(call) is not None
        step = now.step if known else None
        found, again = self.reuse.get(key, self._sources(call), step, compute)
        if self.applied is not None:
            self.applied.counts.reused += again
            self.applied.counts.computed += not again
        return found

    def _tile(self, call: Call) -> Tensor | None:
        """The hint that a pack that works in tiles has put in the place of the picture's."""
        return None

    def _sources(self, call: Call) -> tuple[Tensor, ...]:
        """The hints that a call's residuals are made of."""
        return ()

    def _computed(self, call: Call, place: Place) -> Residuals:
        """What the net makes of the rows of `place`; here for nets that give residuals."""
        raise NotImplementedError

    def _shaped(
        self,
        found: Residuals,
        call: Call,
        place: Place,
        now: Moment,
        weights: Sequence[float] | None,
        sizes: Sequence[Size] | None,
        *,
        given: float = 1.0,
    ) -> HostResiduals:
        """Residuals with strength, weights, factors and mask, in the whole batch.

        sizes: of the blocks, for residuals averaged over the picture; given: the strength that is
        in them already.
        """
        strength = place.strength
        scale = strength / given
        found = weigh(found, scale if weights is None else [scale * w for w in weights])
        if any(factor != 1 for factor in place.factors):
            found = weigh_rows(found, torch.tensor(place.factors))
        mask = self.settings.mask_for(place.batch, place.rows)
        if mask is not None:
            found = self._masked(found, mask, call, sizes)
        if not place.whole:
            found = spread_rows(found, place.rows, len(place.batch))
        if self.record is not None:
            sides = place.batch.sides
            self.record.note(
                **self._label(now),
                strength=strength,
                residuals=found,
                side=[side or "" for side in sides],
                size=call.size,
            )
        return to_host(found)

    def _masked(
        self, found: Residuals, mask: Tensor, call: Call, sizes: Sequence[Size] | None
    ) -> Residuals:
        return mask_residuals(found, mask, sizes)
