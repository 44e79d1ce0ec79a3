"""Which rows get the control, with every guider of the host; the marks, and hooks beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.sampler_helpers
import comfy.samplers
import torch
from apply_stage import Stage, before, control_of, on_stage
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from world import World, distance

CONTROL = "ControlNet is more important"
STEPS = 3


def rows(stage: Stage, act: Callable[[], Any]) -> dict[str, list[int]]:
    """Rows that the net and the UNet saw."""
    with stage.counted() as counts:
        act()
    return {"net": counts.net, "unet": counts.unet}


def both_sides(stage: Stage) -> Any:
    """The usual guider: the control on the positive side alone, as if it were put there alone."""
    prompts = stage.applied(mode=CONTROL)
    found: list[Any] = []
    answer = rows(stage, lambda: found.append(stage.sample(prompts)))
    weighed = stage.applied(mode="my prompt is more important")
    alone = stage.sample((weighed[0], stage.prompts[1]))
    whole = stage.applied(mode=CONTROL)
    control_of(whole).leaves_out_rows = False
    computed = rows(stage, lambda: found.append(stage.sample(whole)))
    return {
        **answer,
        "as on the positive side alone": distance(found[0], alone),
        "effect": distance(found[0], stage.sample(weighed)),
        "computed": computed["net"],
        "as computed and zeroed": distance(*found),
    }


def dual(stage: Stage) -> Any:
    """Two prompts and a negative one; the second isn't marked. Then all of them marked positive."""
    positive, negative = stage.applied(mode=CONTROL)
    text, _ = stage.prompts[1][0]
    middle = [[text, {"control": control_of((positive,)), "pooled_output": None}]]

    def guider(*conds: Any) -> Callable[[], Any]:
        made = Guider_DualCFG(stage.model)
        made.set_conds(*conds)
        made.set_cfg(3.0, 2.0)
        return lambda: stage.guided(made, STEPS)

    return {
        "unknown": rows(stage, guider(positive, middle, negative)),
        "marks win": rows(stage, guider(positive, positive, positive)),
        "negative everywhere": rows(stage, guider(negative, negative, negative)),
    }


def perp_neg(stage: Stage) -> Any:
    positive, negative = stage.applied(mode=CONTROL)
    guider = Guider_PerpNeg(stage.model)
    guider.set_conds(positive, negative, stage.prompts[1])
    guider.set_cfg(3.0, 1.0)
    return rows(stage, lambda: stage.guided(guider, STEPS))


def alone(stage: Stage) -> Any:
    """Nodes that ask for the negative or the positive side once more, alone."""
    prompts = stage.applied(mode=CONTROL)
    sag = SelfAttentionGuidance.execute(stage.model, 0.5, 2.0).args[0]
    pag = PerturbedAttentionGuidance.execute(stage.model, 3.0).args[0]
    return {
        "sag": rows(stage, lambda: stage.sample(prompts, sag)),
        "pag": rows(stage, lambda: stage.sample(prompts, pag)),
        "no guidance": rows(stage, lambda: stage.sample(prompts, cfg=1.0)),
    }


def without_apply(stage: Stage) -> Any:
    """The host's own Apply knows no marks: the guider's names are taken."""
    pooled = stage.world.ours(stage.path, pooling=True)
    prompts = stage.world.with_theirs(pooled, stage.hint)
    with stage.counted(pooled.patcher.model) as counts:
        stage.sample(prompts)
    return {"net": counts.net, "unet": counts.unet}


def hooks(stage: Stage) -> Any:
    """Ours are registered, and put on no conditioning."""
    prompts = stage.applied(prompts=stage.applied())
    on_conds: list[Any] = []
    wrappers: list[int] = []

    def look(model: Any, conds: Any, x: Any, t: Any, options: Any) -> None:
        on_conds.extend("hooks" in entry for side in conds for entry in side)
        wrappers.append(len(options["transformer_options"]["wrappers"]["calc_cond_batch"]))

    with before(comfy.samplers, "_calc_cond_batch_outer", look):
        stage.sample(prompts)
    has = getattr(comfy.sampler_helpers, "cond_has_hooks", lambda _: False)
    return {
        "on conditionings": any(on_conds),
        "looked": len(on_conds),
        "wrappers": max(wrappers),
        "named": len(control_of(prompts).get_extra_hooks()),
        "has hooks": any(map(has, prompts)),
    }


def dynamic(stage: Stage) -> Any:
    """A host with dynamic memory loads the base again for hooks that are named."""
    model = stage.model.clone()
    loaded: list[int] = []

    def again() -> Any:
        loaded.append(1)
        return model

    model.is_dynamic = lambda: True
    model.get_non_dynamic_delegate = again
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*stage.applied())
    return {"loaded again": len(loaded)}


def weight_hook(stage: Stage, *keyframes: tuple[float, float]) -> tuple[Any, dict[str, Any]]:
    """A hook that changes the UNet's weights, and the same change as a patch."""
    generator = torch.Generator().manual_seed(9)
    weights = {
        f"diffusion_model.{key}": ("diff", (torch.randn(value.shape, generator=generator) / 40,))
        for key, value in stage.unet.state_dict().items()
        if value.ndim == 2
    }
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = weights, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    if keyframes:
        frames = comfy.hooks.HookKeyframeGroup()
        for start, strength in keyframes:
            frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        group.set_keyframes_on_hooks(frames)
    return group, weights


def other_hooks(stage: Stage) -> Any:
    """Hooks on weights, steady and scheduled, beside our own."""
    steady, weights = weight_hook(stage)
    scheduled, _ = weight_hook(stage, (0.0, 0.0), (0.5, 1.0))
    patched = stage.model.clone()
    patched.add_patches(weights, 1.0)

    def hooked(group: Any, prompts: Any) -> Any:
        return tuple(comfy.hooks.set_hooks_for_conditioning(side, group) for side in prompts)

    prompts = stage.applied()
    found = stage.sample(hooked(steady, prompts))
    door = stage.sample(hooked(steady, stage.prompts), stage.patched())
    late = stage.sample(hooked(scheduled, prompts), steps=4)
    one_side = (hooked(steady, prompts)[0], stage.applied(mode=CONTROL)[1])
    mixed = rows(stage, lambda: stage.sample(one_side))
    return {
        "as a patch": distance(found, stage.sample(prompts, patched)),
        "by the door": distance(door, found),
        "effect": distance(found, stage.sample(prompts)),
        "scheduled": [
            distance(late, stage.sample(prompts, steps=4)),
            distance(late, stage.sample(prompts, patched, steps=4)),
        ],
        "one side": mixed["unet"],
        "again": distance(stage.sample(prompts), stage.sample(prompts)),
    }


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return on_stage(both_sides, dual, perp_neg, alone, without_apply, hooks, dynamic, other_hooks)
