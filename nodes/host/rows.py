"""The rows of a batch: whose side each is, which part of the picture and which frame it shows.

Apply marks the conditionings. The host gives every conditioning a uuid and says which uuids are in
a batch, so a mark can be found for each row. `cond_or_uncond` would not do: guiders with more than
two prompts, and those that ask for the negative one alone, number the sides otherwise.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import comfy.hooks
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...cldm_core.tiles import place_of

SIDE = "cldm_side"
"""Under this name Apply leaves `positive` or `negative` in a conditioning's options."""
POSITIVE, NEGATIVE = "positive", "negative"
ROWS = "cldm_rows"
PICTURES = "cldm_pictures"
LATENTS = "cldm_latents"
WRAPPERS = "controlnet_cldm_rows"

Area = tuple[int, int, int, int]
"""Height, width, top and left of a part of the picture, in latents."""
Conds = list[dict[str, Any]]


class Row(NamedTuple):
    """A conditioning's part in a call: its side, its area, and the size of the whole latents."""

    side: str | None
    area: Area | None
    size: tuple[int, int]


def note_sampling(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """A SAMPLER_SAMPLE wrapper: every conditioning gets its side and a uuid of its own.

    It leaves in the transformer options how many pictures there are.
    """
    conds = getattr(guider, "conds", None)
    if conds:
        guider.conds = _told_apart(conds, getattr(guider, "original_conds", conds))
    # These options are a copy for this sampling.
    options = extra_args["model_options"].setdefault("transformer_options", {})
    options[PICTURES] = noise.shape[0]
    return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)


def _told_apart(
    conds: dict[str, Conds | None], original: dict[str, Conds | None]
) -> dict[str, Conds | None]:
    """The conditionings of each of a guider's lists, marked with their sides.

    For the area of a prompt on one side the host puts a copy of it on the other, with the text that
    is there: the copy still has the uuid and the mark of its original.
    """
    found: dict[str, Conds | None] = {}
    for name, entries in conds.items():
        own = {entry.get("uuid") for entry in original.get(name) or ()}
        named = name if name in (POSITIVE, NEGATIVE) else None
        marks = [e[SIDE] for e in entries or () if e.get("uuid") in own and SIDE in e]
        of_copies = marks[0] if marks else named
        found[name] = entries and [
            {**entry, SIDE: entry.get(SIDE, named)}
            if entry.get("uuid") in own
            else {**entry, SIDE: of_copies, "uuid": uuid.uuid4()}
            for entry in entries
        ]
    return found


def note_rows(
    executor: Any,
    model: Any,
    conds: Sequence[Conds | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> Any:
    """A CALC_COND_BATCH wrapper that leaves a `Row` for each uuid in the transformer options.

    Beside them it leaves the latents of the whole picture.
    """
    options = model_options.get("transformer_options", {})
    size = (x.shape[-2], x.shape[-1])
    rows = {
        entry.get("uuid"): Row(entry.get(SIDE), _area(entry.get("area"), x), size)
        for entries in conds
        for entry in entries or ()
    }
    options = {**options, ROWS: rows, LATENTS: x}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options})


def _area(area: Any, x: Tensor) -> Area | None:
    """A conditioning's area, cut at the picture's border as the host cuts it."""
    if area is None or len(area) != 4 or x.ndim != 4:
        return None
    height, width, top, left = area
    return min(height, x.shape[2] - top), min(width, x.shape[3] - left), top, left


def row_wrappers() -> dict[str, dict[str, list[Callable[..., Any]]]]:
    """The wrappers that a model needs for rows to be known, by kind and key."""
    return {
        WrappersMP.SAMPLER_SAMPLE: {WRAPPERS: [note_sampling]},
        WrappersMP.CALC_COND_BATCH: {WRAPPERS: [note_rows]},
    }


@cache
def row_hooks() -> Any:
    """The same wrappers as hooks, which a control in the conditioning brings along.

    One group for all controls: the host adds equal hooks once.
    """
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.TransformerOptionsHook({"wrappers": row_wrappers()}))
    return group


@dataclass(frozen=True)
class Batch:
    """The rows of a call: `prompts` behind each other, each with the same pictures.

    frames: which pictures of the sampling they are; total: how many the sampling has; placed:
    whether it is known which part of the picture every row shows.
    """

    prompts: tuple[Row | None, ...]
    frames: tuple[int, ...]
    total: int
    placed: bool

    @classmethod
    def of(cls, options: dict[str, Any], x: Tensor, prompts: int) -> Batch:
        """From a call's transformer options, its latents, and how many prompts it has."""
        if x.shape[0] % prompts:  # a pack has divided the call, and which rows are left isn't told
            prompts = 1
        each = x.shape[0] // prompts
        known = options.get(PICTURES, 0)
        frames = _window(options) or tuple(range(known))
        copies, rest = divmod(each, len(frames)) if frames else (0, 0)
        if rest or not copies:
            frames, copies = tuple(range(each)), 1
        # Packs that work in tiles put the whole batch behind itself, once for each tile.
        rows = _prompts(options, x[:: len(frames)], prompts, copies)
        size = (x.shape[-2], x.shape[-1])
        placed = all(row is not None and (row.area or row.size == size) for row in rows)
        return cls(rows, frames, max(known, *(frame + 1 for frame in frames)), placed)

    @property
    def areas(self) -> tuple[Area | None, ...]:
        """The area of each prompt."""
        return tuple(None if row is None else row.area for row in self.prompts)

    @property
    def whole(self) -> tuple[int, int] | None:
        """Height and width of the whole latents, where the rows show parts of them."""
        return next((row.size for row in self.prompts if row and row.area), None)

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


def _prompts(options: dict[str, Any], x: Tensor, count: int, copies: int) -> tuple[Row | None, ...]:
    """The rows of each copy of a call's prompts; x: the first picture's latents of each."""
    uuids = options.get("uuids") or ()
    rows = options.get(ROWS) or {}
    if len(uuids) != count:
        return (None,) * count * copies
    known = [rows.get(name) for name in uuids] * copies
    return tuple(_in_place(row, x[at], options.get(LATENTS)) for at, row in enumerate(known))


def _in_place(row: Row | None, x: Tensor, whole: Tensor | None) -> Row | None:
    """The row; where a tile (C, h, w) of it is sampled, with the tile's place as its area.

    Without an area where what is sampled is no piece of the latents, so that nobody knows which
    part it shows.
    """
    size = (x.shape[-2], x.shape[-1])
    if row is None or size == (row.size if row.area is None else row.area[:2]):
        return row
    place = place_of(x, whole[0]) if whole is not None and x.ndim == 3 else None
    return row._replace(area=None if place is None else (*size, *place))


def _window(options: dict[str, Any]) -> tuple[int, ...]:
    """The pictures of a sliding window, the host's own or AnimateDiff's; empty: there is none."""
    window = options.get("context_window")
    found = getattr(window, "index_list", None) if getattr(window, "dim", 0) == 0 else None
    if found is None:
        found = (options.get("ad_params") or {}).get("sub_idxs")
    return tuple(map(int, found or ()))
