"""Control-LoRAs and differences: the base is never held twice, and always the sampled one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.model_management
from equal import changed, difference_state, lora_state
from torch import Tensor
from world import World, bytes_held, distance

FILES = {"control_lora": lora_state, "difference": difference_state}


def file_of(world: World, kind: str) -> Path:
    return world.save(f"bound {kind}", FILES[kind](world, world.demo))


def memory(kind: str) -> Callable[[World], Any]:
    """Bytes beside what there was before, in mid-sampling and afterwards."""

    def case(world: World) -> Any:
        path = file_of(world, kind)
        control = world.ours(path)
        prompts = world.with_ours(control, world.hint())
        used = prompts[0][0][1]["control"]
        world.sample(world.demo, prompts)
        before, during = bytes_held(), []

        def look(step: int, *_: Any) -> None:
            during.append((bytes_held(), used.bound is not None))

        world.sample(world.demo, prompts, steps=2, callback=look)
        return {
            "base": world.demo.model_size(),
            "before": before,
            "file": path.stat().st_size,
            "counted": sum(patcher.model_size() for patcher in used.get_models()),
            "during": max(held for held, _ in during) - before,
            "bound": all(bound for _, bound in during),
            "after": bytes_held() - before,
            "dropped": used.bound is None,
        }

    return case


def error(world: World) -> Any:
    """A run that ends in an error, and one after it."""
    prompts = world.with_ours(world.ours(file_of(world, "control_lora")), world.hint())
    used = prompts[0][0][1]["control"]
    expected = world.sample(world.demo, prompts)

    def stop(step: int, *_: Any) -> None:
        raise RuntimeError("stopped in mid-sampling")

    try:
        world.sample(world.demo, prompts, callback=stop)
        stopped = False
    except RuntimeError:
        stopped = True
    return {
        "stopped": stopped,
        "dropped": used.bound is None,
        "features": len(used.encoded),
        "again": distance(world.sample(world.demo, prompts), expected),
    }


def rebound(kind: str) -> Callable[[World], Any]:
    """The same CONTROL_NET on a model whose LoRA changes from run to run."""

    def case(world: World) -> Any:
        path = file_of(world, kind)
        prompts = world.with_ours(world.ours(path), world.hint())
        models = [world.demo, changed(world.demo), changed(world.demo, 2.0), world.demo]
        kept = [world.sample(model, prompts) for model in models]
        fresh = [
            world.sample(model, world.with_ours(world.ours(path), world.hint())) for model in models
        ]
        return {
            "fresh": max(map(distance, kept, fresh)),
            "effect": [distance(a, b) for a, b in pairwise(kept)],
            "back": distance(kept[0], kept[-1]),
        }

    return case


def low_memory(world: World) -> Any:
    """The host keeps a part of the base aside and patches it only when a layer runs."""
    prompts = world.with_ours(world.ours(file_of(world, "control_lora")), world.hint())
    full = world.sample(changed(world.demo), prompts)
    free_all()
    model, share = changed(world.demo), world.demo.model_size() // 3
    load = model.partially_load

    def partially(device: Any, extra_memory: float = 0, **options: Any) -> Any:
        return load(device, share, **options)

    model.partially_load = partially
    put_off: list[int] = []

    def look(step: int, *_: Any) -> None:
        layers = model.model.diffusion_model.modules()
        put_off.append(sum(bool(getattr(layer, "weight_function", [])) for layer in layers))

    found = world.sample(model, prompts, callback=look)
    weights = world.pack("nodes.host.weights").BaseModelWeights(model.model.diffusion_model)
    keys = list(model.model.diffusion_model.state_dict())
    partly: dict[str, Tensor] = {key: weights(key).clone() for key in keys}
    free_all()
    comfy.model_management.load_models_gpu([whole := changed(world.demo)])
    expected = whole.model.diffusion_model.state_dict()
    apart = max(distance(partly[key], expected[key]) for key in keys)
    free_all()
    plain = world.sample(world.demo, prompts)
    return {
        "put off": min(put_off),
        "full": distance(found, full),
        "weights": apart,
        "effect": distance(found, plain),
    }


def free_all() -> None:
    comfy.model_management.unload_all_models()


def settings(world: World) -> Any:
    """Latents for several strengths and windows: how far each is from the one before."""
    control = world.ours(file_of(world, "difference"))
    hint = world.hint()
    several = [(1.0, 0.0, 1.0), (0.5, 0.0, 1.0), (0.5, 0.0, 0.5), (0.5, 0.5, 1.0), (0.0, 0.0, 1.0)]
    found = [world.sample(world.demo, world.with_ours(control, hint, *one)) for one in several]
    return {"steps": [distance(a, b) for a, b in pairwise(found)]}


CASES: dict[str, Callable[[World], Any]] = {
    "memory control_lora": memory("control_lora"),
    "memory difference": memory("difference"),
    "error": error,
    "rebound control_lora": rebound("control_lora"),
    "rebound difference": rebound("difference"),
    "low memory": low_memory,
    "settings": settings,
}
