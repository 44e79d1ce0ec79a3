"""Batches and sliding windows: every picture has its own hint, mask and factor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import comfy.context_windows
import comfy.controlnet
import torch
from apply_stage import Controls, Stage, before, control_of, on_stage, tensors
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from equal import adapter_state
from torch import Tensor
from world import World, distance, sentence

BATCH = 4
CURVE = "0: 1, 1: 0, 3: 0.5"
FACTORS = [1.0, 0.0, 0.25, 0.5]


def curve(stage: Stage, text: str = CURVE) -> Any:
    return stage.options.ControlTiming.execute("timesteps (ComfyUI)", text).args[0]


def of_rows(control: Controls, other: Controls, count: int) -> list[float]:
    """How many times the other's each row's residual is, of the first block."""
    pairs = zip(control["output"][0], other["output"][0], strict=True)
    found = [round(float((a * b).sum() / (b * b).sum()), 4) for a, b in pairs]
    assert found[:count] == found[count:], "the same on both sides"
    return found[:count]


def factors(stage: Stage) -> Any:
    """Factors by picture; pictures with 0 are not computed."""
    prompts = stage.applied(options=curve(stage))
    plain = stage.controls(stage.applied(), batch=BATCH, steps=1)[0]
    with stage.counted() as counts:
        found = stage.controls(prompts, batch=BATCH, steps=1)[0]
    short = stage.applied(options=curve(stage, "0-2: 1, -1: 0"))
    return {
        "factors": of_rows(found, plain, BATCH),
        "rows": counts.net,
        "too short": sentence(lambda: stage.sample(short, batch=2)),
    }


def hints(stage: Stage) -> Any:
    """One hint, one for each, fewer, more: against the same hints written out."""
    several = stage.world.hint(64, 64, batch=6)
    wanted = {1: [0] * 4, 2: [0, 1, 0, 1], 3: [0, 1, 2, 0], 4: [0, 1, 2, 3], 6: [0, 1, 2, 3]}
    found = {}
    for count, order in wanted.items():
        with stage.counted() as counts:
            ours = stage.sample(stage.applied(hint=several[:count]), batch=BATCH)
        written = stage.sample(stage.applied(hint=several[order]), batch=BATCH)
        encoded = [hint.shape[0] for hint in counts.hints]
        found[str(count)] = {"apart": distance(ours, written), "encoded": encoded}
    one, other = (stage.sample(stage.applied(hint=several[n : n + 1]), batch=4) for n in (0, 1))
    return {**found, "effect": distance(one, other)}


def windowed(stage: Stage, length: int, overlap: int) -> Any:
    return ContextWindowsManualNode.execute(
        stage.model, length, overlap, "standard_static", 1, False, "pyramid", 0, *more_inputs()
    ).args[0]


def more_inputs() -> list[Any]:
    """What newer hosts' node asks for besides."""
    known = [each.id for each in ContextWindowsManualNode.define_schema().inputs]
    return [False] if "freenoise" in known else []


def windows(stage: Stage) -> Any:
    """Windows of two pictures, against each two pictures sampled by themselves."""
    return by_windows(stage, windowed(stage, 2, 0))


def animatediff(stage: Stage) -> Any:
    """The same with windows in AnimateDiff's way, for one net and for two."""
    model = animated(stage)
    found = by_windows(stage, model)
    chain = stage.applied(prompts=stage.applied())
    return {
        **found,
        "chain": sentence(lambda: stage.sample(chain, model)),
        "afterwards": hasattr(control_of(chain), "sub_idxs"),
    }


def animated(stage: Stage) -> Any:
    model = stage.model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "AnimateDiff", sliding)
    return model


def sliding(
    executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any
) -> Any:
    """Windows of two pictures as AnimateDiff-Evolved's sliding_calc_cond_batch samples them."""
    parts = []
    for first in range(0, x.shape[0], 2):
        window = [*range(first, min(first + 2, x.shape[0]))]
        for entry in (entry for entries in conds for entry in entries or ()):
            give_window(entry.get("control"), window)
        model_options["transformer_options"]["ad_params"] = {"sub_idxs": window}
        parts.append(executor(model, conds, x[window], timestep[window], model_options))
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def give_window(control: Any, window: list[int]) -> None:
    """As its prepare_control_objects: a control must have the attribute, else it is refused."""
    if control is None:
        return
    give_window(control.previous_controlnet, window)
    if not hasattr(control, "sub_idxs"):
        raise ValueError(f"Control type {type(control).__name__} may not support windows.")
    control.sub_idxs = window


def foreign(stage: Stage) -> Any:
    """Nets of the host's loader in windows of both kinds, which know none."""
    world, other = stage.world, Stage(stage.world, "sd", (8, 8))
    adapter = world.save("frames t2i", adapter_state(world, channels=(64, 128, 256, 256)))
    theirs, before_it = world.theirs(stage.path), stage.applied(strength=0.5)
    return {
        "the host's": by_windows(stage, windowed(stage, 2, 0), theirs),
        "an adapter": by_windows(other, windowed(other, 2, 0), world.theirs(adapter)),
        "AnimateDiff's": by_windows(stage, animated(stage), theirs, before_it),
        **noted(stage),
    }


class Notes(comfy.controlnet.ControlBase):
    """Stands in for a net of the host with a mask: notes the numbers of its hints and masks."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen, self.concat_mask = seen, True

    def copy(self) -> Notes:
        other = Notes(self.seen)
        self.copy_to(other)
        return other

    def get_control(self, *_: Any) -> None:
        given = (self.cond_hint_original, *self.extra_concat_orig)
        self.seen.append([[round(10 * float(one.max())) for one in several] for several in given])


def noted(stage: Stage) -> Any:
    """The hints and masks that a net reads in two windows of two pictures, and what is left."""
    seen: list[Any] = []
    hints = torch.stack([torch.full((64, 64, 3), number / 10 + 0.01) for number in range(3)])
    masks = torch.stack([torch.full((64, 64), number) for number in (0.5, 0.3)])
    prompts = stage.applied(Notes(seen), hint=hints, inpaint_mask=masks[[0, 1, 0]])
    inner = control_of(prompts).inner
    inner.extra_concat_orig = [mask[:2] for mask in inner.extra_concat_orig]
    stage.sample(prompts, windowed(stage, 2, 0), batch=BATCH)
    return {
        "given": seen[:2],
        "left": [len(inner.cond_hint_original), len(inner.extra_concat_orig[0])],
    }


def by_windows(stage: Stage, model: Any, control: Any = None, prompts: Any = None) -> Any:
    """What a model gives that samples in windows of two pictures.

    control: instead of the stage's; prompts: that it is put on.
    """
    several = stage.world.hint(64, 64, batch=BATCH)
    masks = torch.rand(BATCH, 64, 64, generator=torch.Generator().manual_seed(2))
    noise = stage.noise(BATCH)
    put = partial(stage.applied, control, prompts=prompts)
    with stage.counted() as counts:
        whole = put(hint=several, mask=masks, options=curve(stage))
        found = stage.sample(whole, model, batch=BATCH)
    parts: list[Tensor] = []
    for first, text in ((0, "1, 0"), (2, "0.25, 0.5")):
        part = slice(first, first + 2)
        alone = put(hint=several[part], mask=masks[part], options=curve(stage, text))
        parts.append(stage.sample(alone, noise=noise[part]))
    return {
        "alone": distance(found, torch.cat(parts)),
        "effect": distance(found, stage.sample(prompts, model, batch=BATCH)),
        "encoded": [hint.shape[0] for hint in counts.hints],
        "rows": counts.net,
        "unet": counts.unet,
    }


def overlapping(stage: Stage) -> Any:
    """Windows that overlap, with reuse: each has residuals of its own.

    In ComfyUI 0.3.64 windows need as many sigmas as pictures, so there are 3 steps here.
    """
    several = stage.world.hint(64, 64, batch=BATCH)
    model = windowed(stage, 2, 1)
    options = stage.options.ControlSpeed.execute(2).args[0]
    prompts = stage.applied(hint=several, options=options)
    seen: list[tuple[int, ...]] = []

    def look(window: Any, full: Tensor, *args: Any, **kwargs: Any) -> None:
        if full.ndim == 4 and full.shape[0] == BATCH:
            seen.append(tuple(window.index_list))

    kind = comfy.context_windows.IndexListContextWindow
    with before(kind, "get_tensor", look), stage.counted() as counts:
        stage.sample(prompts, model, batch=BATCH)
    noted = control_of(prompts).applied.counts
    return {
        "windows": [list(one) for one in dict.fromkeys(seen)],
        "encoded": [hint.shape[0] for hint in counts.hints],
        "computed": [noted.computed, noted.reused],
    }


def memory(stage: Stage) -> Any:
    """Bytes that a control holds between steps: encoded hints, and residuals to be used again."""
    several = stage.world.hint(64, 64, batch=BATCH)
    (call,) = stage.controls(stage.applied(hint=several), batch=BATCH, steps=1)
    found: dict[str, Any] = {
        "row": bytes_of(tensors(call)) // (2 * BATCH),
        "hint": stage.unet.model_channels * 8 * 8 * several.element_size(),
    }
    for name, every, model in (
        ("whole", 2, stage.model),
        ("overlapping", 2, windowed(stage, 2, 1)),
        ("without reuse", 1, stage.model),
    ):
        options = stage.options.ControlSpeed.execute(every).args[0]
        prompts = stage.applied(hint=several, options=options)
        control, held = control_of(prompts), []

        def look(*_: Any, control: Any = control, held: Any = held) -> None:
            hints = [features for _, features in control.encoded._entries.values()]
            sets = [kept.residuals for kept in control.reuse._kept.values()]
            items = [each for one in sets for each in (*one.input, *one.output, *one.middle)]
            held.append([bytes_of(hints), bytes_of(items)])

        stage.sample(prompts, model, batch=BATCH, callback=look)
        found[name] = held
    return found


def bytes_of(items: Iterable[Tensor]) -> int:
    """The memory of tensors, what they share counted once."""
    storages = [item.untyped_storage() for item in items]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def union(world: World) -> Any:
    """Types with unlike counts of hints: each cycles by itself."""
    from equal import union_state

    stage = Stage(world, "xl", (4, 4))
    nodes = world.pack("nodes.union")
    path = world.save("apply union", union_state(world, world.xl, 6))
    two, three = world.hint(32, 32, 1, batch=2), world.hint(32, 32, 2, batch=3)

    def sampled(first: Tensor, second: Tensor) -> Tensor:
        control = nodes.SetControlType.execute(world.ours(path), "depth").args[0]
        control = nodes.AddUnionHint.execute(control, "openpose", second, 1.0).args[0]
        return stage.sample(stage.applied(control, first), batch=BATCH)

    found = sampled(two, three)
    return {
        "written out": distance(found, sampled(two[[0, 1, 0, 1]], three[[0, 1, 2, 0]])),
        "effect": distance(found, sampled(two, three[:1])),
        "one and two": distance(sampled(two[:1], two), sampled(two[[0, 0]], two)),
    }


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    acts = (factors, hints, windows, animatediff, foreign, overlapping, memory)
    return {**on_stage(*acts, size=(8, 8)), "union": union}
