"""Modes, weights of blocks, settings that both doors share, and settings that change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_base
import torch
from apply_stage import Stage, apart, before, control_of, ratios, tensors
from equal import adapter_state, difference_state, lora_state, union_state
from lllite import Case
from torch import Tensor
from world import SD, TEXT, Small, World, base_model, distance, sentence

PROMPT, CONTROL = "my prompt is more important", "ControlNet is more important"
NETS = {
    "sd15": ("sd", None),
    "sdxl": ("xl", None),
    "t2i": ("sd", {}),
    "t2i_xl": ("xl", {"kind": "xl"}),
}
CHANNELS = (64, 128, 256, 256)
SD21_TEXT = 1024


class Predicts(Small):
    """As SD 2.1: what it predicts is v."""

    def model_type(self, *_: Any, **__: Any) -> Any:
        return comfy.model_base.ModelType.V_PREDICTION


def weights(family: str) -> Callable[[World], Any]:
    """How far what the UNet gets is from the balanced residuals times the core's numbers."""

    def case(world: World) -> Any:
        base, adapter = NETS[family]
        stage = Stage(world, base)
        if adapter is not None:
            state = adapter_state(world, channels=CHANNELS, **adapter)
            stage.control = world.ours(world.save(f"apply {family}", state))
        curves = world.core.modes.CURVES if adapter is None else ("a1111",)
        plain = stage.controls(stage.applied(), steps=1)[0]
        found: dict[str, Any] = {"count": len(tensors(plain)), "size": size(plain)}
        for curve in ("auto", *curves):
            options = stage.options.ControlWeights.execute(curve, "text", "").args[0]
            for mode, name in ((PROMPT, "prompt"), (CONTROL, "control")):
                make = partial(stage.applied, mode=mode, options=options)
                found[f"{name}, {curve}"] = one_mode(world, stage, make, plain, (name, family))
        return found

    def one_mode(
        world: World, stage: Stage, make: Callable[[], Any], plain: Any, mode: tuple[str, str]
    ) -> Any:
        prompts: Any = None
        refused = sentence(lambda: make())
        if refused:
            return refused
        prompts = make()
        settings = control_of(prompts).settings
        curve = {"sdxl": "a1111", "t2i": "a1111", "t2i_xl": "a1111"}.get(mode[1], "original")
        curve = curve if settings.curve == "auto" else settings.curve
        numbers = world.core.block_weights(*mode, curve)
        got = stage.controls(prompts, steps=1)[0]
        if mode[0] == "control":  # on the positive row alone, which the host puts last
            got = {slot: [rows_of(item, -1) for item in items] for slot, items in got.items()}
            plain = {slot: [rows_of(item, -1) for item in items] for slot, items in plain.items()}
        return apart(got, plain, numbers)

    return case


def size(control: Any) -> float:
    return max(float(item.abs().max()) for item in tensors(control))


def rows_of(item: Tensor | None, row: int) -> Tensor | None:
    return None if item is None else item[row:][:1]


def kinds(world: World) -> Any:
    """Nets of other kinds: what each mode scales them by, and whose rows it computes."""
    wide = {**SD, "context_dim": SD21_TEXT, "use_linear_in_transformer": True}
    world.sd21 = base_model(wide, kind=Predicts)
    typed = world.pack("nodes.union").SetControlType.execute
    light = {"channels": CHANNELS, "kind": "light", "num_res_blocks": 4}
    table: dict[str, tuple[str, str, Any]] = {
        "union": ("xl", "sdxl", union_state(world, world.xl)),
        "Control-LoRA": ("sd", "sd15", lora_state(world, world.sd)),
        "difference": ("demo", "", difference_state(world, world.demo)),
        "light adapter": ("sd", "t2i", adapter_state(world, **light)),
        "SD 2.1": ("sd21", "sd21", None),
    }
    found = {}
    for name, (base, family, state) in table.items():
        stage = Stage(world, base, (8, 8))
        if state is not None:
            stage.control = world.ours(world.save(f"kinds {name}", state))
        if name == "union":
            stage.control = typed(stage.control, "depth").args[0]
        if name == "SD 2.1":
            stage.prompts = wide_prompts(stage.prompts)
        found[name] = modes_of(world, stage, family)
    lllite = Case(world)
    given = (*lllite.prompts, lllite.control, lllite.hint, 1.0, 0.0, 1.0)
    found["ControlNet-LLLite"] = [
        sentence(lambda mode=mode: world.apply.ApplyControlNet.execute(*given, mode=mode))
        for mode in (PROMPT, CONTROL)
    ]
    return found


def wide_prompts(prompts: Any) -> Any:
    """The prompts in SD 2.1's width."""
    return [[[text.repeat(1, 1, SD21_TEXT // TEXT), o] for text, o in side] for side in prompts]


def modes_of(world: World, stage: Stage, family: str) -> Any:
    """How far each side's residuals are from the balanced ones times the core's numbers.

    With the rows that the net computes, and whether the two sides' balanced residuals differ.
    """
    plain, found = stage.controls(stage.applied(), steps=1)[0], {}
    count = len(tensors(plain))
    # The embedded model has another depth, and the original's formula over that.
    original = [0.825 ** (count - 1 - index) for index in range(count)]
    for mode, name in ((PROMPT, "prompt"), (CONTROL, "control")):
        rows: list[int] = []
        with before(
            type(stage.net), "forward", lambda _, x, *__, rows=rows, **___: rows.append(len(x))
        ):
            got = stage.controls(stage.applied(mode=mode), steps=1)[0]
        curve = "a1111" if family in ("sdxl", "t2i") else "original"
        numbers = world.core.block_weights(name, family, curve) if family else original
        sides = [
            apart(row_of(got, row), row_of(plain, row), [factor * number for number in numbers])
            for row, factor in (
                (0, name == "prompt"),
                (1, 1),
            )  # the host puts the positive side last
        ]
        found[name] = {"apart": sides, "rows": rows}
    return {**found, "count": count, "size": size(plain)}


def row_of(control: Any, row: int) -> Any:
    """One row of a call's residuals; those of one row are every row's."""
    return {
        slot: [
            None if item is None else item.expand(2, *item.shape[1:])[row : row + 1]
            for item in items
        ]
        for slot, items in control.items()
    }


def scaled(world: World) -> Any:
    """Latents of the prompt's mode, beside a net whose zero convolutions are scaled by hand."""
    stage = Stage(world, "sd")
    numbers = world.core.block_weights("prompt", "sd15", "original")
    state = world.controlnet(stage.model)
    for index, number in enumerate(numbers):
        name = "middle_block_out" if index == 12 else f"zero_convs.{index}.0"
        for key in [key for key in state if key.startswith(f"{name}.")]:
            state[key] = state[key] * number
    by_hand = world.ours(world.save("apply scaled", state))
    found = stage.sample(stage.applied(mode=PROMPT))
    return {
        "by hand": distance(found, stage.sample(stage.applied(by_hand))),
        "effect": distance(found, stage.sample(stage.applied())),
    }


def blocks(world: World) -> Any:
    """Weights as text and presets: what each block is multiplied with."""
    stage = Stage(world, "sd", (8, 8))
    plain = stage.controls(stage.applied(), steps=1)[0]

    def got(preset: str, text: str) -> list[float]:
        options = stage.options.ControlWeights.execute("auto", preset, text).args[0]
        return ratios(stage.controls(stage.applied(options=options), steps=1)[0], plain)

    presets = world.pack("cldm_core.block_text").PRESETS
    parse = world.pack("cldm_core.block_text").parse_blocks
    options = stage.options.ControlWeights.execute("auto", "text", "1, 2, 3").args[0]
    xl = Stage(world, "xl", (8, 8))
    tens = ", ".join(str(number / 10) for number in range(1, 11))
    own = stage.options.ControlWeights.execute("original", "text", tens).args[0]
    two = (xl.controls(p, steps=1)[0] for p in (xl.applied(mode=PROMPT, options=own), xl.applied()))
    return {
        "in place of a curve": ratios(*two),
        "text": got("text", "0-2: 0.5, middle: 2, rest: 1"),
        "presets": [
            max(abs(a - b) for a, b in zip(got(name, ""), parse(name, 13), strict=True))
            for name in presets
        ],
        "wrong": sentence(lambda: stage.applied(options=options)),
    }


def doors(world: World) -> Any:
    """Each setting by the conditioning and by the MODEL: how far apart, and how far from none."""
    stage = Stage(world, size=(8, 8))
    options = stage.options
    half = torch.zeros(2, 64, 64)
    half[0, :, :32], half[1, 32:] = 1, 0.5
    steps, timesteps = options.ControlTiming.define_schema().inputs[0].options[::-1]
    settings: dict[str, dict[str, Any]] = {
        "prompt": {"mode": PROMPT},
        "control": {"mode": CONTROL},
        "curve": {
            "mode": PROMPT,
            "options": options.ControlWeights.execute("diffusers", "text", "").args[0],
        },
        "weights": {
            "options": options.ControlWeights.execute("auto", "text", "0-3: 0.5, rest: 1").args[0]
        },
        "schedule": {"schedule": "0: 1, 1: 0 cosine"},
        "schedule by steps": {
            "schedule": "1, 0",
            "options": options.ControlTiming.execute(steps, "").args[0],
        },
        "frames": {"options": options.ControlTiming.execute(timesteps, "0: 1, 1: 0").args[0]},
        "mask": {"mask": half[:1]},
        "mask for each": {"mask": half},
        "reuse": {"options": options.ControlSpeed.execute(2).args[0]},
        "stretch": {"hint": world.hint(48, 80), "fit": "stretch"},
        "fill": {"hint": world.hint(48, 80), "fit": "fill"},
        "window": {"window": (0.2, 0.6)},
        "window by steps": {
            "window": (0.3, 0.6),
            "options": options.ControlTiming.execute(steps, "").args[0],
        },
        "hints": {"hint": world.hint(64, 64, batch=2)},
        "strength": {"strength": 0.4},
    }
    plain = stage.sample(stage.applied(), batch=2)
    found = {}
    for name, setting in settings.items():
        first = stage.sample(stage.applied(**setting), batch=2)
        second = stage.sample(None, stage.patched(**setting), batch=2)
        found[name] = [distance(first, second), distance(first, plain)]
    return found


def nothing(world: World) -> Any:
    """Settings that are the same as none: how far apart the latents are."""
    stage = Stage(world, size=(8, 8))
    timing = stage.options.ControlTiming
    unit = timing.define_schema().inputs[0].options
    plain = stage.sample(stage.applied(), batch=2)
    same: dict[str, dict[str, Any]] = {
        "mask of ones": {"mask": torch.ones(1, 64, 64)},
        "schedule of one": {"schedule": "0: 1"},
        "frames of one": {"options": timing.execute(unit[0], "1").args[0]},
        "weights of one": {
            "options": stage.options.ControlWeights.execute("auto", "text", "rest: 1").args[0]
        },
        "window of all steps": {"options": timing.execute(unit[1], "").args[0]},
        "curve of balanced": {
            "options": stage.options.ControlWeights.execute("diffusers", "text", "").args[0]
        },
    }
    zero = stage.applied(strength=0.0)
    bare = stage.sample()
    black = stage.sample(stage.applied(mask=torch.zeros(1, 64, 64)))
    return {
        **{
            name: distance(stage.sample(stage.applied(**setting), batch=2), plain)
            for name, setting in same.items()
        },
        "strength 0": all(a is b for a, b in zip(zero, stage.prompts, strict=True)),
        "strength 0, model": stage.patched(strength=0.0) is stage.model,
        "black mask": distance(black, bare),
        "schedule of 0": distance(stage.sample(stage.applied(schedule="0")), bare),
    }


def options(world: World) -> Any:
    """Options nodes in any order."""
    nodes = world.pack("nodes.options")
    makers = [
        lambda given: nodes.ControlWeights.execute("a1111", "text", "0.5", given).args[0],
        lambda given: nodes.ControlTiming.execute("steps (WebUI)", "1, 0", given).args[0],
        lambda given: nodes.ControlSpeed.execute(3, given).args[0],
    ]

    def chained(order: list[Any]) -> dict[str, Any]:
        given = None
        for make in order:
            given = make(given)
        return dataclasses.asdict(given)

    return {"order": chained(makers) == chained(makers[::-1]), "reuse": chained(makers)["reuse"]}


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return {
        **{f"weights {family}": weights(family) for family in NETS},
        **{act.__name__: act for act in (kinds, scaled, blocks, doors, nothing, options)},
    }
