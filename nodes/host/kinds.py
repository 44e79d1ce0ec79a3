"""CONTROL_NETs of the families that need more than a hint: types, a base model, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...cldm_core import CldmError, Residuals, UnknownControlType
from ...cldm_core.control_lora import BoundControlNet
from ...cldm_core.lllite import ControlLLLite
from ...cldm_core.masks import mask_patch
from ...cldm_core.projections import Patch, by_attention, weigh_patch_rows
from ...cldm_core.union import UnionControlNet, control_type_names, control_type_number
from .clock import Moment
from .control import HostControl
from .hints import Hints, distinct_areas, hint_numbers
from .residuals import HostResiduals, spread
from .steered import Call, Place
from .weights import BaseModelWeights

TYPE = "control_type"
"""Under this name the host's own node leaves the numbers of a union's types."""
MORE = "cldm_more_hints"
NO_PLACE = (
    "The picture is sampled in tiles, and which part of it a tile shows can't be told, so the "
    "hints of Add Union Hint can't be cut to it: leave Add Union Hint out, or sample in tiles that "
    "lie within the picture."
)


class HostUnion(HostControl):
    """A union ControlNet, whose hints have types; Apply brings one, others may have been added."""

    def with_type(self, kind: str) -> HostUnion:
        """A copy that takes the hint of its Apply node as one of this type."""
        return self._with(TYPE, [self._number(kind)])

    def with_hint(self, kind: str, hint: Tensor, scale: float) -> HostUnion:
        """A copy that reads one more hint (B, C, H, W) in [0, 1], of this type."""
        number = self._number(kind)
        more = dict(self.extra_args.get(MORE, {}))
        if number in more:
            raise CldmError(f"There is a hint of the type {kind} already: give one for each type.")
        return self._with(MORE, {**more, number: (hint, scale)})

    def _with(self, name: str, value: Any) -> HostUnion:
        other: HostUnion = self.copy()
        other.set_extra_arg(name, value)
        return other

    def _number(self, kind: str) -> int:
        return control_type_number(kind, self.net.config.control_types)

    def check_settings(self) -> None:
        super().check_settings()
        types = self.extra_args.get(TYPE, [])
        count = self.net.config.control_types
        known = ", ".join(control_type_names(count)) or f"0 to {count - 1}"
        if len(types) != 1:
            raise UnknownControlType(
                f"This union ControlNet must be told what its hint is: put Set Control Type (CLDM) "
                f"in front of Apply, with one of {known}."
            )
        number = control_type_number(types[0], count)
        if number in self.extra_args.get(MORE, {}):
            raise UnknownControlType(
                "The hint of Apply and one that was added have the same control type: each type "
                f"takes one hint. The types are {known}."
            )

    @property
    def hint_channels(self) -> int:
        channels: int = self.net.config.controlnet.hint_channels
        return channels

    def _hints(self, hint: Tensor) -> Hints:
        (number,) = self.extra_args[TYPE]
        more = {kind: other for kind, (other, _) in self.extra_args.get(MORE, {}).items()}
        return {number: hint, **more}

    def _features(self, call: Call, place: Place, chosen: slice = slice(None)) -> Any:
        tile, batch = self._tile(call), place.batch
        if tile is None or not self.extra_args.get(MORE):
            return super()._features(call, place, chosen)
        if not batch.placed:
            raise CldmError(NO_PLACE)
        hints = self._hints_for(call)

        def encode() -> Any:
            return self._encode(
                {k: self._of_rows(hint, call, cut=hint is tile) for k, hint in hints.items()}
            )

        key = (call.size, batch, call.x.device, self.compute_type)
        return spread(self.encoded.get(hints, key, encode), place.rows[chosen])

    def _of_rows(self, hint: Tensor, call: Call, *, cut: bool) -> Tensor:
        """A tile's hint for each row of its call; cut: whether the pack has cut it already."""
        batch, count = call.batch, hint.shape[0]
        areas = (None,) if cut else distinct_areas(batch)
        found = self._fitted(hint, areas, call)
        if cut and count == len(batch):
            return found
        return found[hint_numbers(batch, range(len(batch)), areas, count)]

    def _encode(self, hints: Hints) -> Any:
        scales = {k: scale for k, (_, scale) in self.extra_args.get(MORE, {}).items() if scale != 1}
        return self.net.encode_hint(hints, scales=scales or None)


class HostBound(HostControl):
    """A Control-LoRA or a difference: bound to the sampled model's patched weights, and only then.

    The host moves and counts what the file holds; the base's weights stay where they are.
    """

    def __init__(self, patcher: Any, compute_type: torch.dtype) -> None:
        super().__init__(patcher, compute_type)
        self.bound: BoundControlNet | None = None

    @property
    def net(self) -> Any:
        return self.patcher.model if self.bound is None else self.bound

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        super().pre_run(model, percent_to_timestep_function)
        self.compute_type = model.manual_cast_dtype or model.get_dtype()
        self.bound = self.patcher.model.bind(BaseModelWeights(model.diffusion_model))

    def _drop(self) -> None:
        super()._drop()
        self.bound = None


class HostLLLite(HostControl):
    """A ControlNet-LLLite: no residuals, but patches on the attentions of the rows it is for."""

    leaves_out_rows = False

    @property
    def may_wait(self) -> bool:
        return False  # the UNet reads its patches when it begins

    def _own(self, call: Call, place: Place, now: Moment) -> HostResiduals | None:
        features = self._features(call, place)
        patches: tuple[Patch, ...] = self.net(call.x, features, None, None, strength=place.strength)
        if any(factor != 1 for factor in place.factors):
            factors = torch.tensor(place.factors)
            patches = tuple(weigh_patch_rows(patch, factors) for patch in patches)
        mask = self.settings.mask_for(place.batch, place.rows)
        if mask is not None:
            patches = tuple(mask_patch(patch, mask) for patch in patches)
        # The dictionaries may be the model's own, so what is added goes into copies. A pack that
        # works in tiles asks again with the same options.
        options = call.options
        found = dict(options.get("patches", {}))
        views = [by_attention(patch) for patch in patches]
        for attention in ("attn1", "attn2"):
            own = [_HostPatch(self, view, attention) for view in views]
            name = f"{attention}_patch"
            found[name] = _with_own(found.get(name, []), own, self)
        options["patches"] = found
        if self.record is not None:
            self.record.note(**self._label(now), strength=place.strength, residuals=Residuals())
        return None


class _HostPatch(NamedTuple):
    """A patch in the host's form: on the inputs of to_q, to_k and to_v, told where they are."""

    control: HostLLLite
    view: Any
    attention: str

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        own = self.view.get((*extra["block"], extra["block_index"], self.attention), {})
        return tuple(
            own[role](x) if role in own else x for role, x in zip("qkv", (q, k, v), strict=True)
        )


def _with_own(items: list[Any], own: list[_HostPatch], control: HostLLLite) -> list[Any]:
    """The patches of an attention with new ones of a control, behind those of other LLLites.

    Those of other packs may merge tokens or bring more, so they come last.
    """
    lllites = [item for item in items if isinstance(item, _HostPatch)]
    others = [item for item in items if not isinstance(item, _HostPatch)]
    return [*(item for item in lllites if item.control is not control), *own, *others]


def kind_of_control(net: torch.nn.Module) -> type[HostControl]:
    """The class of CONTROL_NET for a net of the core."""
    for family, control in (
        (UnionControlNet, HostUnion),
        (BoundControlNet, HostBound),
        (ControlLLLite, HostLLLite),
    ):
        if isinstance(net, family):
            return control
    return HostControl
