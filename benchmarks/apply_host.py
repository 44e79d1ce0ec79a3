"""What `apply.py` starts with a host's interpreter: imports the host and the pack, and measures."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent


def say(kind: str, **values: Any) -> None:
    """One record for the process that started this one."""
    print(json.dumps({"kind": kind, **values}), flush=True)


def main(task: dict[str, Any]) -> None:
    sys.path[:0] = [task["root"]]
    sys.path.append(str(BENCHMARKS.parent / "tests" / "host"))
    sys.argv = sys.argv[:1]
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    import torch
    from comfy.cli_args import args

    args.cpu = task["device"] == "cpu" or not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
    args.base_directory = task["base"]
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    from runner import load_pack

    name = load_pack(task["pack"])
    with torch.inference_mode():
        ACTS[task["act"]](importlib.import_module(f"{name}.cldm_core"), task)


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    import comfy.model_management
    import load
    import torch

    device = comfy.model_management.get_torch_device()
    found = {k: v for k, v in load.machine().items() if k != "page_cache"}
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {**found, "device": named, "threads": torch.get_num_threads()}


def speed(core: Any, task: dict[str, Any]) -> None:
    """Samplings of all variants in turn, round by round."""
    import torch
    from apply_variants import VARIANTS
    from apply_world import LENGTH, Missing, World

    world = World(core, task["small"], task["advanced"])
    say("machine", **machine())
    able = []
    for variant in VARIANTS:
        if task["only"] and variant.name not in task["only"]:
            continue
        try:
            # Small latents are enough to read all weights once.
            world.measure(variant, size=world.size if world.cuda else 16)
            able.append(variant)
        except Missing as reason:
            say("missing", variant=variant.name, reason=str(reason))
    peak = Peak(torch.cuda if world.cuda else None)
    for number in range(task["pairs"]):
        first = number % len(able)
        # In turn, and each round from another one on, so that disturbances fall on all of them.
        for variant in able[first:] + able[:first]:
            gc.collect()
            repeat = task["repeat"] or (LENGTH // variant.steps if world.cuda else 1)
            with peak:
                found = world.measure(variant, repeat)
            say(
                "timing",
                round=number,
                variant=variant.name,
                step=round(found.step, 5),
                cpu=round(found.cpu, 5),
                once=round(found.once, 5),
                peak=round(peak.megabytes, 1),
            )


class Peak:
    """MB at most beyond what was held at the start: of a GPU's memory, else of resident memory."""

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.megabytes = cuda, 0.0

    def __enter__(self) -> None:
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.before = self.cuda.memory_allocated() / 2**20
        else:
            import load

            load.forget_peak()
            self.before = load.memory()["resident"]

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            most = self.cuda.max_memory_allocated() / 2**20
        else:
            import load

            most = load.memory()["peak"]
        self.megabytes = most - self.before


def memory(core: Any, task: dict[str, Any]) -> None:
    """Resident memory after each of many runs; every run loads model and net anew."""
    import load
    from apply_variants import BUILT_IN, EXACT, REUSE_2, VARIANTS
    from apply_world import Missing, World

    world = World(core, True, None)
    say("machine", **machine())
    for variant in (v for v in VARIANTS if v.name in (BUILT_IN, EXACT, REUSE_2)):
        resident = []
        try:
            for _ in range(task["runs"]):
                world.switch()
                world.measure(variant, repeat=4)
                gc.collect()
                resident.append(round(load.memory()["resident"], 2))
        except Missing as reason:
            say("missing", variant=variant.name, reason=str(reason))
            continue
        say("memory", variant=variant.name, resident=resident)


def quality(core: Any, task: dict[str, Any]) -> None:
    """Pictures of the embedded model by each way that isn't exact, against exact ones."""
    from apply_quality import compare

    say("machine", **machine())
    compare(core, task, say)


ACTS = {"speed": speed, "memory": memory, "quality": quality}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
