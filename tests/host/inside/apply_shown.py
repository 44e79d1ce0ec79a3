"""What a control tells: its report, its record; and nets that are computed in bf16."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from apply_stage import Stage, before, control_of, on_stage
from equal import adapter_state, difference_state, lora_state
from world import World, distance, sentence

CONTROL = "ControlNet is more important"


def report(stage: Stage) -> Any:
    """The text of a sampling with everything in it, and of one with nothing."""
    options = stage.options.ControlTiming.execute("steps (WebUI)", "").args[0]
    options = stage.options.ControlSpeed.execute(2, options).args[0]
    prompts = stage.applied(mode=CONTROL, options=options, window=(0.0, 0.75))
    stage.sample(prompts, steps=6)
    full = control_of(prompts).applied.text().split("\n")
    plain = stage.applied()
    stage.sample(plain)
    return {"full": full, "plain": control_of(plain).applied.text().split("\n")}


def sent(stage: Stage) -> Any:
    """The messages of a node to the editor: one a sampling, also where it made several copies."""
    messages: list[Any] = []
    editor = SimpleNamespace(client_id="me", send_sync=lambda *message: messages.append(message))
    several = (stage.applied(strength=0.5)[0], stage.prompts[1])
    prompts = stage.applied(prompts=several)
    for side in prompts:
        side[0][1]["control"].applied.node = "7"
    copies = prompts[0][0][1]["control"] is not prompts[1][0][1]["control"]
    model = stage.patched()

    def stop(step: int, *_: Any) -> None:
        raise RuntimeError("stopped in mid-sampling")

    served = SimpleNamespace(PromptServer=SimpleNamespace(instance=editor))
    with mock.patch.dict(sys.modules, {"server": served}):
        stage.sample(prompts)
        once = len(messages)
        stage.sample(prompts)
        sentence(lambda: stage.sample(prompts, callback=stop))
    without = sentence(lambda: stage.sample(prompts))
    (event, data, client), *_ = messages
    stage.sample(None, model)
    return {
        "copies": copies,
        "counts": [once, len(messages)],
        "event": event,
        "node": data["node"],
        "text": data["text"].split("\n")[1],
        "client": client,
        "without a server": without,
    }


def record(stage: Stage) -> Any:
    """What a record got: steps, strengths, why a step was off, and the size of what was added."""
    kept = stage.world.pack("cldm_core.record").ControlRecord()
    options = stage.options.ControlTiming.execute("steps (WebUI)", "").args[0]
    prompts = stage.applied(
        window=(0.3, 1.0), options=options, schedule="1, 0", prompts=stage.applied(strength=0.5)
    )
    control = control_of(prompts)
    control.record = control.previous_controlnet.record = kept
    plain = stage.controls(prompts, steps=4)
    nets = {net.steps_on: net for net in kept.nets}
    first = nets[4].steps[0].blocks["z0"]
    positive = plain[0]["output"][0][-1:]  # the host puts the positive side last
    return {
        "nets": sorted(nets),
        "name": nets[2].name,
        "strengths": [round(step.strength, 3) for step in nets[2].steps],
        "off": [step.off for step in nets[2].steps],
        "labels": len(nets[2].labels),
        "rms": abs(first.rms - float(positive.square().mean().sqrt())) / first.rms,
    }


def bf16(world: World) -> Any:
    """Nets in bf16 beside the same in float32: how far the latents are, in what is computed."""
    found: dict[str, Any] = {}
    channels = (64, 128, 256, 256)
    kinds = {
        "controlnet": ("demo", None),
        "t2i": ("sd", adapter_state(world, channels=channels)),
        "t2i xl": ("xl", adapter_state(world, channels=channels, kind="xl")),
    }
    for name, (base, state) in kinds.items():
        stage = Stage(world, base)
        path = stage.path if state is None else world.save(f"bf16 {name}", state)
        full, half = world.ours(path), world.ours(path, precision=torch.bfloat16)
        types: set[str] = set()

        def look(item: Any, *_: Any, types: set[str] = types, **__: Any) -> None:
            types.add(str(item.dtype))

        with (
            before(half.patcher.model, "encode_hint", look),
            before(half.patcher.model, "forward", look),
        ):
            first = stage.sample(stage.applied(half), steps=1)
        second = stage.sample(stage.applied(full), steps=1)
        door = stage.sample(None, stage.patched(half), steps=1)
        error = float((first - second).norm() / second.norm())
        found[name] = {
            "error": error,
            "types": sorted(types),
            "weights": str(next(half.patcher.model.parameters()).dtype),
            "door": distance(door, first),
            "finite": bool(first.isfinite().all()),
            "again": distance(stage.sample(stage.applied(full), steps=1), second),
        }
    return found


def bf16_refused(world: World) -> Any:
    """Nets upon a base compute in its type."""
    files = {
        "lora": world.save("bf16 lora", lora_state(world, world.demo)),
        "difference": world.save("bf16 difference", difference_state(world, world.demo)),
    }
    return {
        name: sentence(lambda path=path: world.ours(path, precision=torch.bfloat16))
        for name, path in files.items()
    }


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    acts = on_stage(report, sent, record, size=(8, 8))
    return {**acts, "bf16": bf16, "bf16 refused": bf16_refused}
