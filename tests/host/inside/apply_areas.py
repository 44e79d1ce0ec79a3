"""Regional prompts and tiles: each gets the part of the hint and of the mask that lies over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from apply_stage import Stage, apart, control_of, on_stage, replaced, tensors
from torch import Tensor
from world import World, distance

from nodes import ConditioningSetArea

CONTROL = "ControlNet is more important"
LEFT, RIGHT = slice(0, 64), slice(64, 128)
"""The halves of a hint of 128 pixels."""


def regions(stage: Stage) -> Any:
    """Two prompts for the halves of the picture, on the positive side."""
    (left,), (right,) = stage.prompts
    halves = [
        ConditioningSetArea().append([entry], 64, 128, x, 0, 1.0)[0][0]
        for entry, x in ((left, 0), (right, 64))
    ]
    return halves, [[stage.prompts[1][0][0] / 2, dict(stage.prompts[1][0][1])]]


def crops(stage: Stage) -> Any:
    """What is encoded, and which rows are computed, in two modes."""
    picture = stage.hint.movedim(-1, 1)
    found = {}
    for mode in ("balanced", CONTROL):
        prompts = stage.applied(prompts=regions(stage), mode=mode)
        with stage.counted() as counts:
            stage.sample(prompts)
        halves = [hint for hint in counts.hints if hint.shape[-1] == 64]
        parts = [[name_of(part[None], picture) for part in hint] for hint in halves]
        whole = [hint for hint in counts.hints if hint.shape[-1] == 128]
        found[mode] = {
            "encoded": [sorted(part) for part in parts],
            "whole": [torch.equal(hint, picture) for hint in whole],
            "net": sorted(counts.net),
            "unet": sorted(counts.unet),
        }
    return found


def name_of(part: Tensor, picture: Tensor) -> str:
    """Which part of the picture this is."""
    names = {"left": picture[..., LEFT], "right": picture[..., RIGHT]}
    return next((name for name, half in names.items() if torch.equal(part, half)), "neither")


def alone(stage: Stage) -> Any:
    """A prompt with an area: its rows are those of a small picture with a part of the hint."""
    _, right = regions(stage)[0]
    prompts = stage.applied(prompts=([right], stage.prompts[1]))
    found = [c for c in stage.controls(prompts, steps=1) if c["middle"][0].shape[0] == 2]
    small = Stage(stage.world, size=(16, 8))
    hint = stage.hint[:, :, RIGHT]
    noise = stage.noise()[..., 8:]
    texts = (stage.prompts[1], stage.prompts[1])
    expected = small.controls(small.applied(hint=hint, prompts=texts), noise=noise, steps=1)[0]
    other = stage.hint[:, :, LEFT]
    wrong = small.controls(small.applied(hint=other, prompts=texts), noise=noise, steps=1)[0]
    return {
        "calls": len(found),
        "apart": apart(found[0], expected),
        "effect": apart(found[0], wrong),
    }


def masks(stage: Stage) -> Any:
    """A mask that is white on the left: nothing for the right area, all for the left one."""
    mask = torch.zeros(1, 128, 128)
    mask[..., LEFT] = 1
    plain = area_rows(stage, stage.applied(prompts=regions(stage)))
    found = area_rows(stage, stage.applied(prompts=regions(stage), mask=mask))
    shares = [
        {round(float(a.abs().sum() / b.abs().sum()), 5) for a, b in zip(*pair, strict=True)}
        for pair in zip(found, plain, strict=True)
    ]
    return {"shares": [sorted(share) for share in shares]}


def area_rows(stage: Stage, prompts: Any) -> list[list[Tensor]]:
    """The residuals of each row of the call for the areas."""
    (found,) = (c for c in stage.controls(prompts, steps=1) if c["output"][0].shape[-1] == 8)
    items = tensors(found)
    return [[item[row] for item in items] for row in range(items[0].shape[0])]


class Tiler:
    """Samples in two tiles beside each other, as TiledDiffusion does: hints are cut by it."""

    def __init__(self, stage: Stage, control: Any, together: bool) -> None:
        self.stage, self.control, self.together = stage, control, together
        self.crops: dict[Any, Tensor] = {}
        self.seen: list[dict[str, list[Tensor | None]]] = []

    def model(self) -> Any:
        model = self.stage.model.clone()
        model.set_model_unet_function_wrapper(self)
        return model

    def __call__(self, function: Any, call: dict[str, Any]) -> Tensor:
        x, c = call["input"], call["c"]
        tiles = [slice(0, 8), slice(8, 16)]
        groups = [tiles] if self.together else [[tile] for tile in tiles]
        out = torch.zeros_like(x)
        for number, group in enumerate(groups):
            cut = torch.cat([x[..., tile] for tile in group])
            part = {
                key: torch.cat([value] * len(group)) if isinstance(value, Tensor) else value
                for key, value in c.items()
            }
            times = torch.cat([call["timestep"]] * len(group))
            self.control.cond_hint = self.crop(number, group, x.shape[0])
            options = c["transformer_options"]
            rows = len(call["cond_or_uncond"])
            part["control"] = self.control.get_control(cut, times, part, rows, options)
            self.seen.append({key: list(value) for key, value in part["control"].items()})
            found = function(cut, times, **part)
            for tile, piece in zip(group, found.chunk(len(group)), strict=True):
                out[..., tile] = piece
        return out

    def crop(self, number: int, group: list[slice], rows: int) -> Tensor:
        """The hint of each row of each tile, made once as TiledDiffusion does."""
        if number not in self.crops:
            hint = self.stage.hint.movedim(-1, 1)
            cut = [hint[..., 8 * tile.start : 8 * tile.stop] for tile in group]
            self.crops[number] = torch.cat([one.expand(rows, -1, -1, -1) for one in cut])
        return self.crops[number]


def tiles(stage: Stage) -> Any:
    """Tiles one by one and all in one call, in both modes, and with reuse."""
    found: dict[str, Any] = {}
    reuse = stage.options.ControlSpeed.execute(2).args[0]
    for mode in ("balanced", CONTROL):
        results = {}
        for together in (False, True):
            prompts = stage.applied(mode=mode)
            tiler = Tiler(stage, control_of(prompts), together)
            with left_to_tiler(prompts), stage.counted() as counts:
                results[together] = stage.sample(prompts, tiler.model())
            found[f"{mode}, {'together' if together else 'one by one'}"] = {
                "net": counts.net,
                "encoded": [list(hint.shape) for hint in counts.hints],
            }
        found[f"{mode}, apart"] = distance(*results.values())
    prompts = stage.applied(options=reuse)
    tiler = Tiler(stage, control_of(prompts), together=False)
    with left_to_tiler(prompts):
        stage.sample(prompts, tiler.model(), steps=2)
    first, second, again, later = tiler.seen
    found["reuse"] = [apart(first, again), apart(second, later), apart(first, second) > 0.01]
    return found


@contextmanager
def left_to_tiler(prompts: Any) -> Iterator[None]:
    """Has the control answer for tiles alone: the sampler, which asks first, gets nothing."""
    control = control_of(prompts)
    own = control.get_control

    def get_control(x: Tensor, *args: Any) -> Any:
        return own(x, *args) if x.shape[-1] == 8 else None

    with replaced(control, "get_control", get_control):
        yield


def crop_by_others(stage: Stage) -> Any:
    """Packs that sample tile by tile put a part of the picture into copies of the chain."""
    stage = Stage(stage.world, size=(16, 8))
    whole, part = stage.world.hint(128, 128), slice(64, 128)
    chained = stage.applied(hint=whole, prompts=stage.applied(hint=whole, strength=0.5))

    def cut(control: Any) -> Any:
        copy = control.copy()
        copy.cond_hint_original = copy.cond_hint_original[..., part]
        previous = control.previous_controlnet
        copy.set_previous_controlnet(previous and cut(previous))
        return copy

    control = cut(control_of(chained))
    prompts = tuple([[text, {**o, "control": control}] for text, o in side] for side in chained)
    own = whole[:, :, part]
    expected = stage.applied(hint=own, prompts=stage.applied(hint=own, strength=0.5))
    return {
        "apart": distance(stage.sample(prompts), stage.sample(expected)),
        "effect": distance(stage.sample(prompts), stage.sample(chained)),
    }


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return on_stage(crops, alone, masks, tiles, crop_by_others)
