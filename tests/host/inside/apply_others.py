"""Beside other nodes: caches that skip steps, Deep Shrink, nets of the host, patches, packs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import permutations
from typing import Any

import comfy.ldm.modules.attention
import torch
from apply_stage import Stage, before, control_of, logged, replaced
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from equal import adapter_state
from lllite import Case
from torch import Tensor
from world import World, distance, sentence

import nodes

STEPS = 8
CHANNELS = (64, 128, 256, 256)
DROPPED = "control could not be applied"


def caches(world: World) -> Any:
    """Calls of net and UNet where steps are skipped, with and without waiting for the UNet."""
    stage = Stage(world, size=(8, 8))
    steered, found = world.pack("nodes.host.steered"), {}
    for node in (EasyCacheNode, LazyCacheNode):
        model = node.execute(stage.model, 3.0, 0.15, 0.95, False).args[0]
        for kind, chain in {"one": 1, "chain": 2}.items():
            prompts = stage.applied()
            if chain == 2:
                prompts = stage.applied(strength=0.5, prompts=prompts)
            with stage.counted() as counts:
                lazy = stage.sample(prompts, model, steps=STEPS)
            told = len(control_of(prompts).applied.counts.steps)
            with (
                replaced(steered, "may_be_skipped", lambda _: False),
                stage.counted() as eager_counts,
            ):
                eager = stage.sample(prompts, model, steps=STEPS)
            found[f"{node.__name__} {kind}"] = {
                "net": len(counts.net) // chain,
                "eager": len(eager_counts.net) // chain,
                "told": told,
                "apart": distance(lazy, eager),
            }
        patched = node.execute(stage.patched(), 3.0, 0.15, 0.95, False).args[0]
        with stage.counted() as counts:
            door = stage.sample(None, patched, steps=STEPS)
        found[f"{node.__name__} door"] = {
            "net": len(counts.net),
            "apart": distance(door, stage.sample(stage.applied(), model, steps=STEPS)),
        }
    return found


def several_caches(world: World) -> Any:
    """EasyCache with a host's net behind ours, which is off at some steps, and on the MODEL."""
    stage = Stage(world, size=(8, 8))
    steered, theirs = world.pack("nodes.host.steered"), world.theirs(stage.path)

    def behind(window: tuple[float, float]) -> Any:
        return world.with_theirs(theirs, stage.hint, prompts=stage.applied(window=window))

    ways = {
        "behind, early": (behind((0.0, 0.5)), stage.model),
        "behind, late": (behind((0.5, 1.0)), stage.model),
        "two on the model": (None, stage.patched(model=stage.patched(strength=0.5))),
        "both doors": (stage.applied(strength=0.5), stage.patched()),
    }
    found = {}
    for name, (prompts, base) in ways.items():
        model = EasyCacheNode.execute(base, 3.0, 0.15, 0.95, False).args[0]
        with stage.counted() as counts:
            lazy = stage.sample(prompts, model, steps=STEPS)
        with replaced(steered, "may_be_skipped", lambda _: False), stage.counted() as eager_counts:
            eager = stage.sample(prompts, model, steps=STEPS)
        found[name] = {
            "net": len(counts.net),
            "eager": len(eager_counts.net),
            "apart": distance(lazy, eager),
        }
    return found


def shrunk(stage: Stage | Case, block: int, after_skip: bool, factor: float = 2.0) -> Any:
    return PatchModelAddDownscale.execute(
        stage.model, block, factor, 0.0, 1.0, after_skip, "bicubic", "bicubic"
    ).args[0]


def shrunk_lllite(world: World) -> Any:
    """A ControlNet-LLLite under Deep Shrink with factors that no level of the UNet has."""
    case, found = Case(world), {}
    for factor in (1.5, 2.0, 3.0):
        for block in (1, 2):
            model = shrunk(case, block, True, factor)
            controlled = case.sample(model, case.conditioned())
            found[f"{block} {factor}"] = {
                "effect": distance(controlled, case.sample(model)),
                "finite": bool(controlled.isfinite().all()),
            }
    return found


def merged_tokens(world: World) -> Any:
    """A ControlNet-LLLite, alone and twice, with a patch that merges tokens."""
    case = Case(world)
    merging = case.model.clone()
    merging.set_model_attn1_patch(lambda q, k, v, _: (q[:, ::2], k, v))
    merging.set_model_attn1_output_patch(lambda x, _: x.repeat_interleave(2, dim=1))
    twice = case.conditioned(0.5, 0.0, 1.0, prompts=case.conditioned())
    found = case.sample(merging, case.conditioned())
    door = world.patched(merging, case.control, case.hint)
    both = world.patched(door, case.control, case.hint, 0.5, 0.0, 1.0)
    return {
        "finite": bool(found.isfinite().all()),
        "effect": distance(found, case.sample(merging)),
        "door": distance(case.sample(door), found),
        "chain": distance(case.sample(both), case.sample(merging, twice)),
    }


def without_a_name(world: World) -> Any:
    """A host whose attentions have other names: nothing is recorded, and all else works."""
    stage, attention = Stage(world, size=(8, 8)), comfy.ldm.modules.attention
    expected, kept = stage.sample(stage.applied(), steps=1), attention.attention_pytorch
    del attention.attention_pytorch
    try:
        found = stage.sample(stage.applied(), steps=1)
    finally:
        attention.attention_pytorch = kept
    return {"apart": distance(found, expected)}


def shrink(base: str, adapter: dict[str, Any] | None = None) -> Callable[[World], Any]:
    """Deep Shrink at every block: what was dropped, whether the control acts, and what is added."""

    def case(world: World) -> Any:
        stage = Stage(world, base)
        if adapter is not None:
            state = adapter_state(world, channels=CHANNELS, **adapter)
            stage.control = world.ours(world.save(f"shrink {base}", state))
        last = len(stage.unet.input_blocks) - 1
        found = {}
        for block in sorted({*range(1, 5), last}):
            for after_skip in (True, False):
                model = shrunk(stage, block, after_skip)
                with logged() as lines:
                    controlled = stage.sample(stage.applied(), model, steps=1)
                found[f"{block} {after_skip}"] = {
                    "dropped": sum(DROPPED in line for line in lines),
                    "effect": distance(controlled, stage.sample(None, model, steps=1)),
                    "finite": bool(controlled.isfinite().all()),
                }
                if base == "demo":
                    door = stage.sample(None, stage.patched(model=model), steps=1)
                    found[f"{block} {after_skip}"]["door"] = distance(door, controlled)
        return found

    return case


def shrink_chains(world: World) -> Any:
    """The host's own ControlNet before and after ours, both doors at once, tiles, odd factors."""
    stage = Stage(world)
    theirs = world.theirs(stage.path)
    first = world.with_theirs(theirs, stage.hint)
    last = world.with_theirs(theirs, stage.hint, prompts=stage.applied())
    found = {}
    for name, prompts in (("before", stage.applied(prompts=first)), ("after", last)):
        model = shrunk(stage, 2, True)
        with logged() as lines:
            result = stage.sample(prompts, model)
        found[name] = [sum(DROPPED in line for line in lines), result]
    found["order"] = distance(found["before"].pop(), found["after"].pop())
    with logged() as lines:
        both = stage.sample(stage.applied(), stage.patched(model=shrunk(stage, 2, True)))
        twice = stage.applied(prompts=stage.applied())
        found["doors"] = distance(both, stage.sample(twice, shrunk(stage, 2, True)))
        stage.sample(stage.applied(), shrunk(stage, 3, True, 1.5))
        stage.sample(stage.applied(), shrunk(stage, 1, False, 3.0))
        stage.sample(stage.applied(theirs), shrunk(stage, 2, True))
    found["lines"] = [line for line in lines if DROPPED in line]
    strange = stage.model.clone()
    strange.set_model_input_block_patch(lambda h, options: h[:1])
    found["refused"] = sentence(lambda: stage.sample(stage.applied(), strange))
    return found


def chains(world: World) -> Any:
    """Nets of every kind and origin in several orders: how far the latents are apart."""
    stage = Stage(world, "sd", (8, 8))
    adapter = world.save("chain t2i", adapter_state(world, channels=CHANNELS))
    hint = stage.hint
    put: dict[str, Callable[[Any], Any]] = {
        "ours": lambda given: stage.applied(strength=0.5, prompts=given),
        "theirs": lambda given: world.with_theirs(
            world.theirs(stage.path), hint, 0.4, 0.0, 1.0, prompts=given
        ),
        "our adapter": lambda given: stage.applied(world.ours(adapter), prompts=given),
        "their adapter": lambda given: world.with_theirs(
            world.theirs(adapter), hint, 0.7, 0.0, 1.0, prompts=given
        ),
        "theirs by ours": lambda given: stage.applied(
            world.theirs(stage.path), strength=0.3, prompts=given
        ),
    }
    results = []
    for order in list(permutations(put))[::29]:
        prompts = stage.prompts
        for name in order:
            prompts = put[name](prompts)
        results.append(stage.sample(prompts, steps=2))
    fewer = stage.prompts
    for name in [*put][1:]:
        fewer = put[name](fewer)
    return {
        "orders": len(results),
        "apart": max(distance(results[0], result) for result in results),
        "effect": distance(results[0], stage.sample(fewer, steps=2)),
    }


def patches(world: World) -> Any:
    """Patches of attentions, as IP-Adapter and its like make them, beside ours and the host's."""
    stage, calls = Stage(world), []

    def patch(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        calls.append(extra["block"])
        return q, k * 1.1, v * 0.9

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        weights = (q @ k.transpose(1, 2) / 8).softmax(-1)
        return weights @ v

    model = stage.model.clone()
    model.set_model_attn2_patch(patch)
    model.set_model_attn2_replace(replace, "input", 1, 0)
    theirs = world.with_theirs(world.theirs(stage.path), stage.hint)
    ours = stage.sample(stage.applied(), model)
    return {
        "host": distance(ours, stage.sample(theirs, model)),
        "door": distance(ours, stage.sample(None, stage.patched(model=model))),
        "effect": distance(ours, stage.sample(stage.applied())),
        "called": len(calls) > 0,
        "left": sorted(model.model_options["transformer_options"]["patches"]),
    }


def changed_rows(world: World) -> Any:
    """A pack that changes some rows: what prompts share is not computed once any more."""
    stage = Stage(world)

    def change(function: Any, call: dict[str, Any]) -> Tensor:
        x = call["input"].clone()
        x[1:] = x[1:].flip(-1)
        return function(x, call["timestep"], **call["c"])

    model = stage.patched(fit="crop")
    model.set_model_unet_function_wrapper(change)
    found = stage.sample(None, model)
    with replaced(world.pack("nodes.host.control").HostControl, "_same_pictures", lambda *_: False):
        expected = stage.sample(None, model)
    given: list[list[int]] = []

    def look(x: Tensor, features: Any, times: Any, context: Tensor, *_: Any) -> None:
        given.append([x.shape[0], context.shape[0]])

    with before(stage.net, "forward", look):
        stage.sample(None, model, steps=1)
        stage.sample(stage.applied(fit="crop"), steps=1)
        stage.sample(stage.applied(), steps=1)
    return {"changed": distance(found, expected), "given": given}


def divided(world: World) -> Any:
    """A pack that has the model called once for each row."""
    stage = Stage(world, size=(8, 8))

    def by_rows(function: Any, call: dict[str, Any]) -> Tensor:
        def row_of(thing: Any, row: int) -> Any:
            return thing[row : row + 1] if isinstance(thing, Tensor) else thing

        x, times, c = call["input"], call["timestep"], call["c"]
        parts = [
            function(x[row : row + 1], times[row : row + 1], **{k: row_of(c[k], row) for k in c})
            for row in range(len(x))
        ]
        return torch.cat(parts)

    model = stage.patched()
    model.set_model_unet_function_wrapper(by_rows)
    return {"apart": distance(stage.sample(None, model), stage.sample(stage.applied()))}


def asked_twice(world: World) -> Any:
    """A pack asks a ControlNet-LLLite again with the same options, as for the next tile."""
    case = Case(world)
    prompts = case.conditioned()
    model = case.model.clone()

    def again(function: Any, call: dict[str, Any]) -> Tensor:
        c, rows = call["c"], len(call["cond_or_uncond"])
        options = c["transformer_options"]
        control_of(prompts).get_control(call["input"], call["timestep"], c, rows, options)
        return function(call["input"], call["timestep"], **c)

    model.set_model_unet_function_wrapper(again)
    expected = case.sample(prompts=prompts)
    return {
        "apart": distance(case.sample(model, prompts), expected),
        "effect": distance(case.sample(), expected),
    }


def unlike(world: World) -> Any:
    """Sums of lists of unlike length: a UNet takes from the end, a transformer counts from 0."""
    merged = world.pack("nodes.host.residuals").merged

    def sums(ndim: int) -> list[float]:
        one, two, four = (torch.full((1,) * ndim, float(number)) for number in (1, 2, 4))
        found = merged({"output": [one]}, {"output": [two, four]})
        return [float(item) for item in found["output"]]

    return {"pictures": sums(4), "tokens": sums(3)}


def foreign(world: World) -> Any:
    """The host's own net in our Apply, with mask, schedule, frames, weights, and on one side."""
    stage = Stage(world)
    theirs = world.theirs(stage.path)
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    options = stage.options.ControlWeights.execute("auto", "text", "0-2: 0.5, rest: 1").args[0]
    frames = stage.options.ControlTiming.execute("steps (WebUI)", "1, 0.5").args[0]
    settings: dict[str, dict[str, Any]] = {
        "mask": {"mask": mask},
        "schedule": {"schedule": "1, 0"},
        "weights": {"options": options},
        "frames": {"options": frames},
        "negative side": {"mode": "ControlNet is more important", "options": options},
    }
    found: dict[str, Any] = {
        name: distance(
            stage.sample(stage.applied(theirs, **setting), batch=2),
            stage.sample(stage.applied(**setting), batch=2),
        )
        for name, setting in settings.items()
    }
    side = stage.applied(theirs, mode="ControlNet is more important", options=options)
    stage.sample(side)
    found["text"] = control_of(side).applied.text()
    found["refused"] = sentence(lambda: stage.applied(theirs, mode="my prompt is more important"))
    return found


def advanced(folder: str | None) -> Callable[[World], Any]:
    """ComfyUI-Advanced-ControlNet: its Apply with our nets, and chains of both."""

    def case(world: World) -> Any:
        if folder is None:
            return {"skipped": "no ComfyUI-Advanced-ControlNet beside the host"}
        with logged() as lines:
            loaded = asyncio.run(nodes.load_custom_node(folder, set(), "custom_nodes"))
        name = "ACN_AdvancedControlNetApply_v2"
        if not loaded or name not in nodes.NODE_CLASS_MAPPINGS:
            return {"skipped": f"it doesn't load in this host: {lines[-1:]}"}
        node = nodes.NODE_CLASS_MAPPINGS[name]
        stage = Stage(world)

        def theirs(control: Any, prompts: Any = None, strength: float = 1.0) -> Any:
            prompts = prompts or stage.prompts
            answer = node.execute(*prompts, control, stage.hint, strength, 0.0, 1.0)
            return answer.args

        plain = stage.applied()
        vanilla = world.theirs(stage.path)
        first = stage.applied(strength=0.5, prompts=theirs(vanilla))
        second = theirs(vanilla, stage.applied(strength=0.5))
        host = stage.applied(strength=0.5, prompts=world.with_theirs(vanilla, stage.hint))
        expected = stage.sample(plain)
        return {
            "our net": distance(stage.sample(theirs(stage.control)), expected),
            "its net": distance(stage.sample(theirs(vanilla)), expected),
            "before": distance(stage.sample(first), stage.sample(host)),
            "after": distance(stage.sample(second), stage.sample(host)),
            "effect": distance(stage.sample(first), expected),
            "still": distance(stage.sample(plain), expected),
        }

    return case


def errors(world: World) -> Any:
    """A cache that is stopped in mid-sampling leaves nothing behind."""
    stage = Stage(world)
    model = EasyCacheNode.execute(stage.model, 3.0, 0.15, 0.95, False).args[0]
    prompts = stage.applied()

    def stop(step: int, *_: Any) -> None:
        if step == 2:
            raise RuntimeError("stopped in mid-sampling")

    expected = stage.sample(prompts, model, steps=STEPS)
    with suppress(RuntimeError):
        stage.sample(prompts, model, steps=STEPS, callback=stop)
    return {
        "again": distance(stage.sample(prompts, model, steps=STEPS), expected),
        "encoded": len(control_of(prompts).encoded),
    }


def cases(args: dict[str, Any]) -> dict[str, Callable[[World], Any]]:
    acts = (
        caches,
        several_caches,
        shrunk_lllite,
        merged_tokens,
        without_a_name,
        shrink_chains,
        chains,
        patches,
        changed_rows,
        divided,
        asked_twice,
        unlike,
        foreign,
        errors,
    )
    return {
        **{act.__name__: act for act in acts},
        "shrink demo": shrink("demo"),
        "shrink sd": shrink("sd"),
        "shrink t2i": shrink("sd", {}),
        "shrink t2i xl": shrink("xl", {"kind": "xl"}),
        "advanced": advanced(args.get("advanced")),
    }
