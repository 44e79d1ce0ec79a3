"""The same file through our nodes and through the host's own: how far the latents differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy.cldm.control_types import UNION_CONTROLNET_TYPES
from comfy_extras.nodes_controlnet import SetUnionControlNetType
from torch import Tensor
from world import World, distance, randomised

SETTINGS = (0.7, 0.1, 0.8)
TYPES = 6


def compared(
    world: World,
    model: Any,
    path: Path,
    *,
    size: tuple[int, int] = (8, 8),
    batch: int = 1,
    host_model: Any = None,
    kind: str | None = None,
    doors: bool = False,
) -> dict[str, Any]:
    """Distances from our road's latents: of the host's, of no control, and of our other roads."""
    ours, theirs = world.ours(path), world.theirs(path, host_model)
    if kind is not None:
        ours = world.pack("nodes.union").SetControlType.execute(ours, kind).args[0]
        theirs = set_type_of_host(theirs, kind)
    hint = world.hint(8 * size[0], 8 * size[1])

    def sample(base: Any, prompts: Any) -> Tensor:
        return world.sample(base, prompts, size, batch)

    expected = sample(model, world.with_theirs(theirs, hint, *SETTINGS))
    found = sample(model, world.with_ours(ours, hint, *SETTINGS))
    distances = {
        "host": distance(found, expected),
        "effect": distance(sample(model, None), found),
        "finite": bool(found.isfinite().all()),
    }
    if doors:
        door = sample(world.patched(model, ours, hint, *SETTINGS), None)
        mixed = sample(model, world.with_theirs(ours, hint, *SETTINGS))
        distances |= {"door": distance(door, found), "host's apply": distance(mixed, found)}
    return distances


def set_type_of_host(control: Any, name: str) -> Any:
    """What the host's own node for union nets makes of a control."""
    known = next(key for key in UNION_CONTROLNET_TYPES if name in key)
    answer = SetUnionControlNetType().set_controlnet_type(control, known)
    return getattr(answer, "args", answer)[0]


def cldm(dtype: torch.dtype | None = None, **options: Any) -> Callable[[World], Any]:
    return lambda world: compared(
        world,
        world.demo,
        world.save(f"cldm {dtype}", world.controlnet(world.demo), dtype),
        size=(16, 16),
        **options,
    )


def prefixed(world: World) -> Any:
    state = {f"control_model.{k}": v for k, v in world.controlnet(world.sd).items()}
    # Smaller pictures have levels of one pixel, where the same sums may run in another order.
    return compared(world, world.sd, world.save("prefixed", state), batch=2, size=(16, 16))


def diffusers(base: str) -> Callable[[World], Any]:
    def case(world: World) -> Any:
        model = getattr(world, base)
        rename = world.pack("cldm_core.checkpoint.keymap").to_diffusers
        path = world.save(f"diffusers {base}", rename(world.controlnet(model)))
        return compared(world, model, path)

    return case


def union_state(world: World, model: Any, types: int = TYPES) -> dict[str, Tensor]:
    union = world.core.union
    config = union.UnionConfig(world.core.ControlNetConfig(world.unet(model)), types)
    return randomised(union.UnionControlNet(config).state_dict(), 3)


def union(world: World) -> Any:
    rename = world.pack("cldm_core.checkpoint.keymap").to_diffusers
    path = world.save("union", rename(union_state(world, world.wide)))
    found = compared(world, world.wide, path, kind="depth", doors=True)
    ours = set_type_of_host(world.ours(path), "depth")
    mine = world.pack("nodes.union").SetControlType.execute(world.ours(path), "depth").args[0]
    hint = world.hint()
    first, second = (
        world.sample(world.wide, world.with_ours(control, hint)) for control in (ours, mine)
    )
    return {**found, "host's type": distance(first, second)}


def adapter_state(world: World, **config: Any) -> dict[str, Tensor]:
    t2i = world.pack("cldm_core.t2i_adapter")
    return randomised(t2i.T2IAdapter(t2i.AdapterConfig(**config)).state_dict(), 3)


def adapter(
    size: tuple[int, int], dtype: Any = None, doors: bool = False, **config: Any
) -> Callable[[World], Any]:
    def case(world: World) -> Any:
        model = world.xl if config.get("kind") == "xl" else world.sd
        state = adapter_state(world, channels=(64, 128, 256, 256), **config)
        return compared(world, model, world.save("adapter", state, dtype), size=size, doors=doors)

    return case


def diffusers_adapter(world: World) -> Any:
    state = adapter_state(world, channels=(64, 128, 256, 256))
    rename = world.pack("cldm_core.checkpoint.detect_t2i").diffusers_t2i
    return compared(world, world.sd, world.save("diffusers adapter", rename(state)))


def light_adapter(world: World) -> Any:
    # The host has light adapters in the width of public base models only, too wide to sample here.
    state = adapter_state(world, channels=(320, 640, 1280, 1280), kind="light", num_res_blocks=4)
    path = world.save("light", state)
    found = []
    for control in (world.ours(path), world.theirs(path)):
        control.set_cond_hint(world.hint(64, 72).movedim(-1, 1), 0.7)
        control.model_sampling = world.sd.model.model_sampling
        x = torch.zeros(2, 4, 8, 9)
        cond = {"c_crossattn": torch.zeros(2, 7, 128)}
        found.append(control.get_control(x, torch.ones(2), cond, 2, {}))
    ours, theirs = (list(one["input"]) for one in found)
    places = [[item is None for item in items] for items in (ours, theirs)]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    apart = max(distance(a.expand_as(b), b) for a, b in pairs)
    return {"places": places[0] == places[1], "count": len(pairs), "host": apart}


def lora_state(world: World, model: Any) -> dict[str, Tensor]:
    """A Control-LoRA: rank 4, and a few biases left to the base."""
    state: dict[str, Tensor] = {"lora_controlnet": torch.zeros(0)}
    generator = torch.Generator().manual_seed(8)
    for key, value in world.controlnet(model).items():
        path, _, name = key.rpartition(".")
        own = key.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        if value.ndim > 1 and not own:
            flat = value.shape[1:].numel()
            state[f"{path}.up"] = torch.randn(value.shape[0], 4, generator=generator) / 2
            down = torch.randn(4, *value.shape[1:], generator=generator)
            state[f"{path}.down"] = down / (4 * flat**0.5)
        elif not key.startswith("time_embed"):
            state[f"{path}.{name}"] = value
    return state


def changed(model: Any, strength: float = 1.0) -> Any:
    """The MODEL with a LoRA on it, as Load LoRA leaves it."""
    clone = model.clone()
    generator = torch.Generator().manual_seed(9)
    patches = {}
    for key, value in model.model.state_dict().items():
        if key.startswith("diffusion_model.") and value.ndim > 1:
            noise = torch.randn(value.shape, generator=generator)
            patches[key] = ("diff", (noise / value[0].numel() ** 0.5,))
    assert len(clone.add_patches(patches, 0.3 * strength)) == len(patches)
    return clone


def lora(base: str, *, patched: bool = False, dtype: Any = None) -> Callable[[World], Any]:
    def case(world: World) -> Any:
        model = getattr(world, base)
        path = world.save(f"lora {base}", lora_state(world, model), dtype)
        return compared(world, changed(model) if patched else model, path, doors=patched)

    return case


def difference_state(world: World, model: Any) -> dict[str, Tensor]:
    state = {"difference": torch.ones(1)}
    base = model.model.diffusion_model.state_dict()
    for key, value in world.controlnet(model).items():
        state[f"control_model.{key}"] = (value - base[key]) / 4 if key in base else value
    return state


def difference(*, patched: bool = False, dtype: Any = None) -> Callable[[World], Any]:
    def case(world: World) -> Any:
        path = world.save("difference", difference_state(world, world.demo), dtype)
        model = changed(world.demo) if patched else world.demo
        return compared(world, model, path, host_model=model, doors=patched)

    return case


CASES: dict[str, Callable[[World], Any]] = {
    "cldm": cldm(doors=True),
    "cldm fp16": cldm(torch.float16),
    "cldm bf16": cldm(torch.bfloat16),
    "cldm fp8": cldm(torch.float8_e4m3fn),
    "cldm prefixed, batch": prefixed,
    "diffusers": diffusers("demo"),
    "diffusers xl": diffusers("xl"),
    "union": union,
    "t2i full": adapter((8, 8), doors=True),
    "t2i full, convolutions": adapter((8, 8), use_conv=True, kernel_size=3),
    "t2i full, grey": adapter((8, 8), hint_channels=1),
    "t2i full, odd": adapter((9, 13)),
    "t2i full, fp16": adapter((8, 8), torch.float16),
    "t2i xl": adapter((8, 8), doors=True, kind="xl"),
    "t2i xl, odd": adapter((9, 13), kind="xl"),
    "t2i diffusers": diffusers_adapter,
    "t2i light": light_adapter,
    "control_lora": lora("demo"),
    "control_lora xl": lora("xl"),
    "control_lora fp16": lora("demo", dtype=torch.float16),
    "control_lora on a LoRA": lora("demo", patched=True),
    "difference": difference(),
    "difference fp16": difference(dtype=torch.float16),
    "difference on a LoRA": difference(patched=True),
}
