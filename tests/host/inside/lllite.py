"""ControlNet-LLLite: kohya's own numbers, only the prompts that have it, and no trace left."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from world import World, base_model, distance, randomised

BASE = {
    "num_res_blocks": [1] * 3,
    "channel_mult": (1, 2, 2),
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1] * 6,
    "transformer_depth_middle": 1,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
    "context_dim": 96,
}
"""Of a width of text that no level has: kohya's node tells the attentions apart by it."""
DEPTHS = {"input_blocks.1.": 1, "input_blocks.3.": 2, "input_blocks.5.": 3, "middle_block.": 3}
SIZE = (16, 16)


class Case:
    """A base model, a net for it, and prompts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = base_model(BASE)
        self.path = world.save("lllite", self.state())
        self.control = world.ours(self.path)
        self.hint = world.hint(128, 128)
        generator = torch.Generator().manual_seed(4)
        self.prompts = tuple(
            [[torch.randn(1, 7, BASE["context_dim"], generator=generator), {}]] for _ in range(2)
        )

    def state(self) -> dict[str, Tensor]:
        net = self.world.pack("cldm_core.lllite")
        paths = self.world.pack("cldm_core.projections").projections(self.world.unet(self.model))
        modules = [
            net.LLLiteModuleConfig(path, width, depth, 16, 8)
            for path, width in paths.items()
            for start, depth in DEPTHS.items()
            if path.startswith(start) and ("attn1" in path or path.endswith("to_q"))
        ]
        return randomised(net.ControlLLLite(net.LLLiteConfig(tuple(modules))).state_dict(), 3)

    def conditioned(self, *settings: float, control: Any = None, prompts: Any = None) -> Any:
        return self.world.with_ours(
            control or self.control, self.hint, *settings, prompts=prompts or self.prompts
        )

    def sample(self, model: Any = None, prompts: Any = None, **options: Any) -> Tensor:
        return self.world.sample(model or self.model, prompts or self.prompts, SIZE, **options)

    def first_step(self, prompts: Any) -> tuple[Tensor, Tensor]:
        """What the model made of the positive and of the negative side in the first step."""
        seen: list[tuple[Tensor, Tensor]] = []
        watched = self.model.clone()

        def watch(args: dict[str, Any]) -> Tensor:
            seen.append((args["cond_denoised"], args["uncond_denoised"]))
            return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

        watched.set_model_sampler_cfg_function(watch)
        self.sample(watched, prompts, steps=1)
        return seen[0]


def kohya(case: Case, node: str | None) -> Any:
    """Latents of the two doors, and of kohya's node where its file is there."""
    found = case.sample(prompts=case.conditioned(0.8, 0.0, 1.0))
    door = case.sample(case.world.patched(case.model, case.control, case.hint, 0.8, 0.0, 1.0))
    answer = {
        "values": [round(float(v), 5) for v in found.flatten()[::97]],
        "door": distance(door, found),
        "effect": distance(case.sample(), found),
    }
    if node is None:
        return answer
    patch = runpy.run_path(node)["load_control_net_lllite_patch"](
        str(case.path), case.hint, 0.8, 0, 0, 0
    )
    theirs = case.model.clone()
    theirs.set_model_attn1_patch(patch)
    theirs.set_model_attn2_patch(patch)
    return {**answer, "kohya": distance(case.sample(theirs), found)}


def sides(case: Case) -> Any:
    """Which side of the first step a control changes that is on both sides, or on one."""
    plain, both = case.first_step(case.prompts), case.first_step(case.conditioned())
    one = case.first_step((case.conditioned()[0], case.prompts[1]))
    window = case.first_step(case.conditioned(1.0, 0.5, 1.0))
    return {
        "positive as with both": distance(one[0], both[0]),
        "negative as without": distance(one[1], plain[1]),
        "effect": [distance(a, b) for a, b in zip(both, plain, strict=True)],
        "before its window": max(map(distance, window, plain)),
    }


def regions(case: Case) -> Any:
    """Two prompts on the positive side, of which one has the control."""
    (controlled,) = case.conditioned()[0]
    other = case.prompts[1][0]
    mixed = case.first_step(([controlled, other], case.prompts[1]))[0]
    alone = [case.first_step(([entry], case.prompts[1]))[0] for entry in (controlled, other)]
    return {"mean": distance(mixed, (alone[0] + alone[1]) / 2)}


def traces(case: Case) -> Any:
    """The user's MODEL, with a patch of its own, before and after: also after an error."""
    model, calls = case.model.clone(), []

    def own(q: Tensor, k: Tensor, v: Tensor, extra: Any) -> tuple[Tensor, ...]:
        calls.append(1)
        return q, k, v

    model.set_model_attn1_patch(own)
    before = copy.copy(model.model_options["transformer_options"]["patches"])
    before = {name: list(items) for name, items in before.items()}
    prompts = case.conditioned()
    first = case.sample(model, prompts)

    def stop(step: int, *_: Any) -> None:
        raise RuntimeError("stopped in mid-sampling")

    with suppress(RuntimeError):
        case.sample(model, prompts, callback=stop)
    options = model.model_options["transformer_options"]
    without = case.sample(model)
    return {
        "same patches": options["patches"] == before,
        "names": sorted(options),
        "called": len(calls) > 0,
        "again": distance(case.sample(model, prompts), first),
        "without": distance(without, case.sample()),
        "hooks": sum(len(m._forward_pre_hooks) for m in model.model.modules()),
    }


def chain(case: Case) -> Any:
    """In one chain with a ControlNet, in either order, and each through a door of its own."""
    world = case.world
    other = world.ours(world.save("lllite chain", world.controlnet(case.model)))
    orders = []
    for first, second in ((case.control, other), (other, case.control)):
        prompts = case.conditioned(control=first)
        orders.append(case.sample(prompts=case.conditioned(control=second, prompts=prompts)))
    patched = world.patched(case.model, case.control, case.hint)
    doors = case.sample(patched, case.conditioned(control=other))
    twice = world.patched(patched, case.control, case.hint)
    return {
        "order": distance(*orders),
        "doors": distance(doors, orders[0]),
        "without LLLite": distance(case.sample(prompts=case.conditioned(control=other)), doors),
        "twice": distance(case.sample(twice), case.sample(patched)),
    }


def hints(case: Case) -> Any:
    """Two hints for two pictures: the second's hint is nothing to the first."""
    world, found = case.world, []
    for seed in (1, 2):
        case.hint = torch.cat([world.hint(128, 128, 7), world.hint(128, 128, seed)])
        found.append(case.sample(prompts=case.conditioned(), batch=2))
    case.hint = world.hint(128, 128)
    return {"first": distance(found[0][0], found[1][0]), "second": distance(*(f[1] for f in found))}


def cases(node: str | None) -> dict[str, Callable[[World], Any]]:
    """node: kohya's node file, if it is there."""
    made: list[Case] = []

    def on(act: Callable[[Case], Any]) -> Callable[[World], Any]:
        def run(world: World) -> Any:
            if not made:
                made.append(Case(world))
            return act(made[0])

        return run

    acts = {"sides": sides, "regions": regions, "traces": traces, "chain": chain, "hints": hints}
    there = node if node and Path(node).is_file() else None
    return {"kohya": on(lambda case: kohya(case, there)), **{k: on(act) for k, act in acts.items()}}
