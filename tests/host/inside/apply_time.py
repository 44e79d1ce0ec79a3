"""When a control acts: windows and schedules in shares of timesteps and of steps, every sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from apply_stage import Stage, before, control_of, on_stage
from world import World

EDGES = [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.3, 0.7), (0.5, 0.5), (0.0, 0.25), (0.75, 1.0)]
STEPS = "steps (WebUI)"
TIMESTEPS = "timesteps (ComfyUI)"


def as_host(stage: Stage) -> Any:
    """How many calls a window of timesteps lets through: ours, and the host's."""
    theirs = stage.world.theirs(stage.path)
    found = {}
    for window in EDGES:
        with stage.counted() as counts:
            stage.sample(stage.applied(window=window), steps=8)
        calls: list[int] = []
        with before(theirs.control_model, "forward", lambda *_, calls=calls, **__: calls.append(1)):
            stage.sample(stage.world.with_theirs(theirs, stage.hint, 1.0, *window), steps=8)
        found[str(window)] = [len(counts.net), len(calls)]
    return found


def steps(stage: Stage) -> Any:
    """Which of 4 steps a window of steps lets through, and how many calls of the net."""
    found = {}
    for sampler in ("euler", "heun", "dpm_2", "dpmpp_2m"):
        for window in ((0.25, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.26, 0.49)):
            prompts = stage.applied(window=window, options=timing(stage, STEPS))
            with stage.counted() as counts:
                stage.sample(prompts, steps=4, sampler=sampler)
            noted = control_of(prompts).applied.counts
            found[f"{sampler} {window}"] = [sorted(noted.steps), noted.last, len(counts.net)]
    prompts = stage.applied(window=(0.25, 0.5), options=timing(stage, STEPS))
    stage.sample(prompts, steps=4, denoise=0.5)
    found["half denoised"] = sorted(control_of(prompts).applied.counts.steps)
    return found


def timing(stage: Stage, unit: str, frames: str = "") -> Any:
    return stage.options.ControlTiming.execute(unit, frames).args[0]


def strengths(stage: Stage, sampler: str = "euler", **inputs: Any) -> list[tuple[float, float]]:
    """Sigma and strength of every call, as the record has them."""
    prompts = stage.applied(**inputs)
    control, found = control_of(prompts), []
    record = stage.world.pack("cldm_core.record").ControlRecord()
    control.record = record
    with before(record, "note", lambda **note: found.append((note["sigma"], note["strength"]))):
        stage.sample(prompts, steps=4, sampler=sampler)
    return found


def schedules(stage: Stage) -> Any:
    """A straight line from 1 to 0, by both units."""
    sampling = stage.model.get_model_object("model_sampling")
    by_steps = strengths(stage, schedule="0: 1, 1: 0", options=timing(stage, STEPS))
    by_time = strengths(stage, schedule="0: 1, 1: 0")
    between = strengths(stage, "dpm_2", schedule="0: 1, 1: 0", options=timing(stage, STEPS))
    last = len(sampling.sigmas) - 1
    shares = [1 - float(sampling.timestep(torch.tensor(sigma))) / last for sigma, _ in by_time]
    return {
        "steps": [strength for _, strength in by_steps],
        "timesteps": [
            abs(strength - (1 - share))
            for share, (_, strength) in zip(shares, by_time, strict=True)
        ],
        "first": by_time[0][1],
        "between steps": [strength for _, strength in between],
    }


def zero_in_between(stage: Stage) -> Any:
    """Steps at which a schedule is 0 are not computed."""
    prompts = stage.applied(schedule="0: 1 hold, 0.5: 0 hold", options=timing(stage, STEPS))
    with stage.counted() as counts:
        stage.sample(prompts, steps=4)
    frames = stage.applied(options=timing(stage, STEPS, "0"))
    with stage.counted() as none:
        stage.sample(frames)
    return {"calls": len(counts.net), "no frame": [len(none.net), len(none.hints)]}


def reuse(stage: Stage) -> Any:
    """Calls of the net where residuals are used again, and what the report says."""
    found = {}
    for every, sampler in ((2, "euler"), (3, "euler"), (8, "euler"), (2, "heun")):
        options = stage.options.ControlSpeed.execute(every).args[0]
        prompts = stage.applied(options=options)
        with stage.counted() as counts:
            stage.sample(prompts, steps=6, sampler=sampler)
        noted = control_of(prompts).applied.counts
        found[f"{every} {sampler}"] = {
            "net": len(counts.net),
            "told": [noted.computed, noted.reused],
            "drifts": len(noted.drift),
            "drift": max(noted.drift, default=0.0),
        }
    window = stage.applied(options=stage.options.ControlSpeed.execute(2).args[0], window=(0.3, 1.0))
    with stage.counted() as counts:
        stage.sample(window, steps=6)
    found["window"] = len(counts.net)
    return found


def rising(stage: Stage) -> Any:
    """Sigmas that rise, as Flip Sigmas makes them: steps and reuse."""
    options = stage.options.ControlSpeed.execute(2).args[0]
    options = stage.options.ControlTiming.execute(STEPS, "", options).args[0]
    prompts = stage.applied(options=options, window=(0.0, 0.7))
    guider = comfy.samplers.CFGGuider(stage.model)
    guider.set_conds(*prompts)
    with stage.counted() as counts:
        stage.guided(guider, 6, flipped=True)
    return {"net": len(counts.net), "steps": sorted(control_of(prompts).applied.counts.steps)}


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return on_stage(as_host, steps, schedules, zero_in_between, reuse, rising, size=(8, 8))
