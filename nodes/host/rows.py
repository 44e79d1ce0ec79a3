"""The rows of a batch: whose side each is, which part of the picture and which frame it shows.

Apply marks the conditionings. The host gives every conditioning a uuid and says which uuids are in
a batch, so a mark can be found for each row. `cond_or_uncond` would not do: guiders with more than
two prompts, and those that ask for the negative one alone, number the sides otherwise.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.hooks
from comfy.patcher_extension import WrappersMP
from torch import Tensor

SIDE = "cldm_side"
"""Under this name Apply leaves `positive` or `negative` in a conditioning's options."""
POSITIVE, NEGATIVE = "positive", "negative"
ROWS = "cldm_rows"
SAMPLING = "cldm_sampling"
WRAPPERS = "controlnet_cldm_rows"

Area = tuple[int, int, int, int]
"""Height, width, top and left of a part of the picture, in latents."""


class Row(NamedTuple):
    """A conditioning's part in a call: its side, its area, and the size of the whole latents."""

    side: str | None
    area: Area | None
    size: tuple[int, int]


class Sampling(NamedTuple):
    """What the guider knows: under which name each conditioning runs, and how many pictures."""

    sides: dict[Any, str]
    pictures: int


def note_sampling(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An OUTER_SAMPLE wrapper that leaves a `Sampling` in the transformer options."""
    guider = executor.class_obj
    conds = getattr(guider, "conds", None) or {}
    sides = {entry.get("uuid"): name for name, entries in conds.items() for entry in entries or ()}
    # The guider's options are a copy for this sampling.
    options = guider.model_options.setdefault("transformer_options", {})
    options[SAMPLING] = Sampling(sides, noise.shape[0])
    return executor(noise, *args, **kwargs)


def note_rows(
    executor: Any,
    model: Any,
    conds: Sequence[list[dict[str, Any]] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> Any:
    """A CALC_COND_BATCH wrapper that leaves a `Row` for each uuid in the transformer options."""
    options = model_options.get("transformer_options", {})
    sampling = options.get(SAMPLING)
    names = sampling.sides if isinstance(sampling, Sampling) else {}
    rows: dict[Any, Row] = {}

    def marked(entry: dict[str, Any]) -> dict[str, Any]:
        name = entry.get("uuid")
        row = Row(_side(entry.get(SIDE) or names.get(name)), _area(entry.get("area"), x), _size(x))
        if rows.setdefault(name, row) == row or not isinstance(name, uuid.UUID):
            return entry
        # The host repeats a prompt for the areas of other prompts, under the same uuid.
        other = uuid.uuid5(name, repr(row.area))
        rows[other] = row
        return {**entry, "uuid": other}

    conds = [None if side is None else [marked(entry) for entry in side] for side in conds]
    return executor(
        model, conds, x, timestep, {**model_options, "transformer_options": {**options, ROWS: rows}}
    )


def _side(name: str | None) -> str | None:
    return name if name in (POSITIVE, NEGATIVE) else None


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _area(area: Any, x: Tensor) -> Area | None:
    """A conditioning's area, cut at the picture's border as the host cuts it."""
    if area is None or len(area) != 4 or x.ndim != 4:
        return None
    height, width, top, left = area
    return min(height, x.shape[2] - top), min(width, x.shape[3] - left), top, left


def row_wrappers() -> dict[str, dict[str, list[Callable[..., Any]]]]:
    """The wrappers that a model needs for rows to be known, by kind and key."""
    return {
        WrappersMP.OUTER_SAMPLE: {WRAPPERS: [note_sampling]},
        WrappersMP.CALC_COND_BATCH: {WRAPPERS: [note_rows]},
    }


def row_hooks() -> Any:
    """The same wrappers as hooks, which a control in the conditioning brings along."""
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook({"wrappers": row_wrappers()}))
    return group


@dataclass(frozen=True)
class Batch:
    """The rows of a call: `prompts` behind each other, each with the same pictures.

    frames: which pictures of the sampling they are; total: how many the sampling has.
    """

    prompts: tuple[Row | None, ...]
    frames: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, options: dict[str, Any], rows: int, prompts: int) -> Batch:
        """From a call's transformer options."""
        pictures = max(1, rows // prompts)
        frames = _window(options, pictures)
        sampling = options.get(SAMPLING)
        known = sampling.pictures if isinstance(sampling, Sampling) else 0
        return cls(
            _prompts(options, prompts), frames, max(known, pictures, *(f + 1 for f in frames))
        )

    @property
    def areas(self) -> tuple[Area | None, ...]:
        """The area of each prompt."""
        return tuple(None if row is None else row.area for row in self.prompts)

    @property
    def sides(self) -> tuple[str | None, ...]:
        """The side of each row."""
        return tuple(None if row is None else row.side for row in self.prompts for _ in self.frames)

    def __len__(self) -> int:
        return len(self.prompts) * len(self.frames)

    def place(self, row: int) -> tuple[int, int]:
        """The number of a row's prompt, and its picture in the sampling."""
        prompt, picture = divmod(row, len(self.frames))
        return prompt, self.frames[picture]


def _prompts(options: dict[str, Any], count: int) -> tuple[Row | None, ...]:
    uuids = options.get("uuids") or ()
    rows = options.get(ROWS) or {}
    return tuple(map(rows.get, uuids)) if len(uuids) == count else (None,) * count


def _window(options: dict[str, Any], pictures: int) -> tuple[int, ...]:
    """The pictures of a sliding window: the host's own, or AnimateDiff's."""
    window = options.get("context_window")
    found = getattr(window, "index_list", None) if getattr(window, "dim", 0) == 0 else None
    if found is None:
        found = (options.get("ad_params") or {}).get("sub_idxs")
    if found is None or len(found) != pictures:
        return tuple(range(pictures))
    return tuple(map(int, found))
