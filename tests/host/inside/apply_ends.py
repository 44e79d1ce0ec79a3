"""What a sampling leaves behind: inputs as they were, nothing after interrupts, no memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import torch
from apply_stage import Stage, control_of, on_stage, replaced
from torch import Tensor
from world import World, bytes_held, distance, sentence

Interrupted = comfy.model_management.InterruptProcessingException


def snapshot(thing: Any) -> Any:
    """What can be compared later: tensors as copies, objects of others by identity."""
    if isinstance(thing, Tensor):
        return ("tensor", thing.clone())
    if isinstance(thing, dict):
        return {key: snapshot(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [snapshot(item) for item in thing]
    if isinstance(thing, (str, int, float, bool, type(None))):
        return thing
    return id(thing)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, tuple):
        return torch.equal(first[1], second[1])
    return bool(first == second)


def inputs(stage: Stage) -> Any:
    """Everything that was given, after it was applied and sampled twice."""
    mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(1))
    options = stage.options.ControlSpeed.execute(2).args[0]
    given = {
        "control": vars(stage.control),
        "conditioning": stage.prompts,
        "image": stage.hint,
        "mask": mask,
        "options": vars(options),
        "weights": stage.net.state_dict(),
        "model": stage.model.model_options,
        "wrappers": stage.model.wrappers,
    }
    before = {name: snapshot(thing) for name, thing in given.items()}
    prompts = stage.applied(mask=mask, options=options, schedule="1, 0.5")
    entries = snapshot(prompts)
    first, second = stage.sample(prompts), stage.sample(prompts)
    model = stage.patched(mask=mask, options=options, schedule="1, 0.5")
    third, fourth = stage.sample(None, model), stage.sample(None, model)
    return {
        **{name: same(before[name], snapshot(thing)) for name, thing in given.items()},
        "applied": same(entries, snapshot(prompts)),
        "callbacks": not any(stage.model.callbacks.values()),
        "apart": [distance(first, other) for other in (second, third, fourth)],
    }


def written(stage: Stage) -> Any:
    """A hint that is written into, between two samplings and in the middle of one."""
    hint = stage.hint.clone()
    prompts = stage.applied(hint=hint)
    stage.sample(prompts)
    hint.zero_()
    between = stage.sample(prompts)
    black = stage.sample(stage.applied(hint=torch.zeros_like(hint)))

    hint.copy_(stage.hint)

    def write(step: int, *_: Any) -> None:
        if step == 0:
            hint.zero_()

    with stage.counted() as counts:
        stage.sample(prompts, callback=write)
    return {
        "between": distance(between, black),
        "effect": distance(black, stage.sample(stage.applied())),
        "encoded": len(counts.hints),
    }


def stopped(stage: Stage, kind: str) -> Any:
    """A sampling that ends early, by each way; what is left, and the one after it."""
    reuse = stage.options.ControlSpeed.execute(2).args[0]
    expected = stage.sample(stage.applied(options=reuse))
    prompts = stage.applied(options=reuse, prompts=stage.applied(options=reuse, strength=0.0))
    control, calls = control_of(prompts), []
    forward = stage.net.forward
    held: list[int] = []

    def interrupt(step: int, *_: Any) -> None:
        held.append(len(control.encoded) + len(control.reuse._kept))
        if kind == "interrupt" and step == 1:
            raise Interrupted

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if kind != "interrupt" and len(calls) > 1:
            error = torch.cuda.OutOfMemoryError if kind == "memory" else RuntimeError
            raise error("out of memory")
        return forward(*args, **kwargs)

    def run(act: Callable[[], Any]) -> str:
        try:
            act()
        except BaseException as error:  # an interrupt of the host is no Exception in all versions
            return type(error).__name__
        return "nothing"

    with replaced(stage.net, "forward", fail):
        ended = run(lambda: stage.sample(prompts, callback=interrupt))
    left = remains(control, stage.model)
    model = stage.patched(options=reuse)
    calls.clear()
    with replaced(stage.net, "forward", fail):
        door = run(lambda: stage.sample(None, model, callback=interrupt))
    return {
        "ended": [ended, door],
        "held": max(held, default=0) > 0,
        "left": left,
        "model": remains(control, model)["callbacks"],
        "again": distance(stage.sample(prompts), expected),
        "door": distance(stage.sample(None, model), expected),
    }


def remains(control: Any, model: Any) -> dict[str, Any]:
    return {
        "encoded": len(control.encoded),
        "reuse": len(control.reuse._kept),
        "clock": control.clock is not None,
        "sampling": control.model_sampling is not None,
        "callbacks": sum(map(len, model.callbacks.get("on_cleanup", {}).values())),
    }


def memory(world: World) -> Any:
    """Bytes of all tensors after samplings on two models in turn, by both doors."""
    stages = [Stage(world, size=(8, 8)), Stage(world, "xl", size=(4, 4))]
    runs = []
    for stage in stages:
        reuse = stage.options.ControlSpeed.execute(2).args[0]
        prompts, model = stage.applied(options=reuse), stage.patched(options=reuse)
        runs.append((stage, prompts, model))

    def sampled() -> None:
        for stage, prompts, model in runs:
            stage.sample(prompts, steps=2)
            stage.sample(None, model, steps=2)

    sampled()
    held = [bytes_held()]
    for _ in range(3):
        for _ in range(3):
            sampled()
        held.append(bytes_held())
    tensor = stages[0].sample(runs[0][1], steps=2)
    kept = bytes_held() - held[-1]
    return {"grown": [after - held[0] for after in held[1:]], "result": kept - tensor.nbytes}


def refused(stage: Stage) -> Any:
    """An error before the first step: nothing of the sampling stays."""
    prompts = stage.applied(stage.world.ours(stage.path))
    message = sentence(lambda: stage.sample(prompts, stage.world.xl))
    return {"message": message, "left": remains(control_of(prompts), stage.world.xl)}


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    kinds = ("interrupt", "memory", "error")
    early = {f"stopped {kind}": partial(stopped, kind=kind) for kind in kinds}
    return {**on_stage(inputs, written, refused, size=(8, 8), **early), "memory": memory}
