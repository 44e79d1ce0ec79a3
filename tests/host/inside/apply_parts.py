"""Parts of a picture: whose residuals are used again, what is not computed, what unions get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from apply_areas import CONTROL, LEFT, left_to_tiler, regions
from apply_stage import Stage, apart, before, control_of, on_stage
from equal import adapter_state, union_state
from torch import Tensor
from world import World, distance, sentence

TILE = 8
"""The side of a tile, in latents: a quarter of the stage's picture."""
CHANNELS = (64, 128, 256, 256)


class Quarters:
    """Samples in four tiles of the picture, rolled across its border as SpotDiffusion does.

    roll: by how many latents; together: all four in one call; control: one on the prompts, which
    gets each tile's part of `hint`, without it nothing is handed on.
    """

    def __init__(
        self,
        roll: int = 0,
        *,
        together: bool = False,
        control: Any = None,
        hint: Tensor | None = None,
    ) -> None:
        self.roll, self.together, self.control = roll, together, control
        self.picture = None if hint is None else hint.movedim(-1, 1).roll((-8 * roll,) * 2, (2, 3))
        self.cuts: dict[Any, Tensor] = {}

    def on(self, model: Any) -> Any:
        tiled = model.clone()
        tiled.set_model_unet_function_wrapper(self)
        return tiled

    def __call__(self, function: Any, call: dict[str, Any]) -> Tensor:
        x = call["input"].roll((-self.roll,) * 2, (2, 3))
        places = [(top, left) for top in (0, TILE) for left in (0, TILE)]
        out = torch.zeros_like(x)
        for group in [places] if self.together else [[place] for place in places]:
            found = self.tiles(function, call, x, group).chunk(len(group))
            for (top, left), piece in zip(group, found, strict=True):
                out[..., top : top + TILE, left : left + TILE] = piece
        return out.roll((self.roll,) * 2, (2, 3))

    def tiles(self, function: Any, call: dict[str, Any], x: Tensor, group: Any) -> Tensor:
        """What the model makes of some of the tiles."""
        count = len(group)
        cut = torch.cat([x[..., top : top + TILE, left : left + TILE] for top, left in group])
        times = torch.cat([call["timestep"]] * count)
        part = {
            key: torch.cat([value] * count) if isinstance(value, Tensor) else value
            for key, value in call["c"].items()
        }
        if self.control is not None:
            self.control.cond_hint = self.cut(group, x.shape[0])
            rows, options = len(call["cond_or_uncond"]), call["c"]["transformer_options"]
            part["control"] = self.control.get_control(cut, times, part, rows, options)
        return function(cut, times, **part)

    def cut(self, group: Any, rows: int) -> Tensor:
        """The hint of each row of each tile, made once."""
        key = tuple(group)
        if key not in self.cuts:
            size = 8 * TILE
            cuts = [self.picture[..., 8 * y : 8 * y + size, 8 * x : 8 * x + size] for y, x in group]
            self.cuts[key] = torch.cat([one.expand(rows, -1, -1, -1) for one in cuts])
        return self.cuts[key]


def speed(stage: Stage) -> Any:
    return stage.options.ControlSpeed.execute(2).args[0]


def rolled(stage: Stage) -> Any:
    """Reuse on the MODEL, with tiles whose place can be found and with such that cross a border."""
    found = {}
    for roll in (0, 4):
        tiler = Quarters(roll)
        first = {
            name: stage.controls(model=tiler.on(stage.patched(**inputs)), steps=1)
            for name, inputs in {"reuse": {"options": speed(stage)}, "none": {}}.items()
        }
        with stage.counted() as counts:
            stage.sample(None, tiler.on(stage.patched(options=speed(stage))), steps=2)
        found[str(roll)] = {
            "as computed": max(apart(*pair) for pair in zip(*first.values(), strict=True)),
            "unlike": apart(first["reuse"][0], first["reuse"][1]),
            "net": len(counts.net),
        }
    return found


def handed(stage: Stage) -> Any:
    """Reuse where a tiler hands each rolled tile its hint: our net, and the host's in our Apply."""
    found = {}
    theirs = stage.world.theirs(stage.path)
    for name, control in {"ours": stage.control, "theirs": theirs}.items():
        latents = {}
        for kind, options in {"reuse": speed(stage), "none": None}.items():
            prompts = stage.applied(control, options=options)
            tiler = Quarters(4, control=control_of(prompts), hint=stage.hint)
            with left_to_tiler(prompts):
                latents[kind] = stage.sample(prompts, tiler.on(stage.model), steps=1)
                stage.sample(prompts, tiler.on(stage.model), steps=2)
            noted = control_of(prompts).applied.counts
            found[f"{name}, {kind}"] = [noted.computed, noted.reused]
        found[f"{name}, apart"] = distance(*latents.values())
    return found


def drift(stage: Stage) -> Any:
    """The drift of every batch of a step: of the areas', and of the whole picture's."""
    prompts = stage.applied(prompts=regions(stage), options=speed(stage))
    stage.sample(prompts, steps=6)
    noted = control_of(prompts).applied.counts
    return {"computed": noted.computed, "drifts": len(noted.drift)}


def black(stage: Stage) -> Any:
    """Rows whose part of the mask is black: what the net computes, and what is told."""
    left = torch.zeros(1, 128, 128)
    left[..., LEFT] = 1
    each = torch.stack([torch.ones(128, 128), torch.zeros(128, 128)])
    record = stage.world.pack("cldm_core.record").ControlRecord
    found = {}
    for name, prompts, batch in (
        ("areas", stage.applied(prompts=regions(stage), mask=left), 1),
        ("pictures", stage.applied(mask=each), 2),
        ("all", stage.applied(mask=torch.zeros(1, 8, 8)), 1),
    ):
        reasons: list[str] = []
        control_of(prompts).record = noted = record()
        with (
            before(noted, "skip", lambda reason, reasons=reasons, **_: reasons.append(reason)),
            stage.counted() as counts,
        ):
            stage.sample(prompts, batch=batch, steps=1)
        found[name] = {"net": sorted(counts.net), "reasons": reasons}
    return found


def looks(stage: Stage) -> Any:
    """How often masks are looked at, and whether one is that was written into since."""
    mask = torch.zeros(1, 128, 128)
    mask[..., LEFT] = 1
    prompts = stage.applied(prompts=regions(stage), mask=mask)
    settings, calls = type(control_of(prompts).settings), []
    with before(settings, "black", lambda *_: calls.append(1)):
        stage.sample(prompts, steps=3)
    mask.zero_()
    with stage.counted() as counts:
        stage.sample(prompts, steps=1)
    return {"looks": len(calls), "net": counts.net}


def reasons(stage: Stage) -> Any:
    """Why nobody gets anything, as the record has it."""
    timing = stage.options.ControlTiming.execute("timesteps (ComfyUI)", "0").args[0]
    side = stage.applied(mode=CONTROL)
    found = {}
    for name, prompts in {
        "frames": stage.applied(options=timing),
        "frames, one side": stage.applied(options=timing, mode=CONTROL),
        "mask": stage.applied(mask=torch.zeros(1, 8, 8)),
        "side": (stage.prompts[0], side[1]),
    }.items():
        told: list[str] = []
        control = prompts[1][0][1]["control"]
        control.record = stage.world.pack("cldm_core.record").ControlRecord()
        with before(control.record, "skip", lambda reason, told=told, **_: told.append(reason)):
            stage.sample(prompts, steps=1)
        found[name] = told
    return found


def union(world: World) -> Any:
    """A union's further hint in tiles: cut to them, by its place, as the first by the tiler."""
    stage = Stage(world, "xl")
    nodes = world.pack("nodes.union")
    path = world.save("parts union", union_state(world, world.xl))
    single = nodes.SetControlType.execute(world.ours(path), "depth").args[0]

    def with_more(seed: int, batch: int = 1) -> Any:
        more = world.hint(128, 128, seed, batch=batch)
        return nodes.AddUnionHint.execute(single, "openpose", more, 1.0).args[0]

    def tiled(control: Any, batch: int = 1, **how: Any) -> Tensor:
        prompts = stage.applied(control)
        tiler = Quarters(control=control_of(prompts), hint=stage.hint, **how)
        with left_to_tiler(prompts):
            return stage.sample(prompts, tiler.on(stage.model), batch=batch, steps=2)

    def by_door(control: Any, batch: int = 1) -> Tensor:
        model = Quarters().on(stage.patched(control))
        return stage.sample(None, model, batch=batch, steps=2)

    control = with_more(7)
    door, several = by_door(control), with_more(8, 2)
    with stage.counted(control.patcher.model) as counts:
        single_tiles = tiled(control)
    return {
        "one by one": distance(single_tiles, door),
        "encoded": len(counts.hints),
        "together": distance(tiled(control, together=True), door),
        "two pictures": distance(tiled(several, 2), by_door(several, 2)),
        "effect": distance(by_door(with_more(9)), door),
        "no place": sentence(lambda: tiled(control, roll=4)),
        "no place, one hint": sentence(lambda: tiled(single, roll=4)),
    }


def odd(world: World) -> Any:
    """SDXL's T2I-Adapters with sides that are no multiples of 16 pixels: what they read."""
    stage = Stage(world, "xl", (9, 13))
    state = adapter_state(world, channels=CHANNELS, kind="xl")
    control = world.ours(world.save("parts t2i", state))
    picture, found = stage.hint.movedim(-1, 1), {}
    for fit in ("crop", "stretch", "fill", "as ComfyUI"):
        with stage.counted(control.patcher.model) as counts:
            stage.sample(stage.applied(control, fit=fit), steps=1)
        (hint,) = counts.hints
        found[fit] = [list(hint.shape[2:]), torch.equal(hint, picture)]
    return found


def overshoot(stage: Stage) -> Any:
    """Masks and pictures a hair outside of [0, 1], as bicubic resizing leaves them."""
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(3))
    mask[..., :32], mask[..., 96:] = 0, 1
    wide = mask.clone()
    wide[..., :32], wide[..., 96:] = -0.03, 1.04
    node, picture = stage.world.pack("nodes.hints").InpaintHint, stage.hint.clamp(0.1, 0.9)
    picture[:, :8], picture[:, 8:16] = 0, 1
    beyond = picture.clone()
    beyond[:, :8], beyond[:, 8:16] = -0.04, 1.0000001

    def marked(image: Tensor, over: Tensor) -> Tensor:
        return node.execute(image, over, "-1 (SD 1.5 inpaint)").args[0]

    return {
        "mask": distance(
            stage.sample(stage.applied(mask=wide)), stage.sample(stage.applied(mask=mask))
        ),
        "inpaint": distance(marked(beyond, wide), marked(picture, mask)),
        "marked": float(marked(beyond, wide).min()),
        "without a batch": distance(marked(picture, mask[0]), marked(picture, mask)),
        "refused": [
            sentence(lambda: stage.applied(mask=2 * mask)),
            sentence(lambda: marked(2 * picture, mask)),
            sentence(lambda: marked(picture, 2 * mask)),
        ],
    }


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    acts = (rolled, handed, drift, black, looks, reasons, overshoot)
    return {**on_stage(*acts), "union": union, "odd": odd}
