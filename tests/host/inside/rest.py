"""Union nets with several hints, files for the host's loader, refusals, memory, node settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.controlnet
import comfy.model_management
import torch
from equal import adapter_state, difference_state, lora_state, union_state
from lllite import Case
from torch import Tensor, nn
from world import World, count, distance, sentence


def residuals(world: World, model: Any, control: Any) -> list[Tensor]:
    """What a control gives for some latents, in the host's order."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    width = world.unet(model)
    text = torch.randn(2, 7, width.context_dim, generator=torch.Generator().manual_seed(2))
    cond = {"c_crossattn": text, "y": torch.ones(2, width.adm_in_channels)}
    control.model_sampling = model.model.model_sampling
    found = control.get_control(x, torch.ones(2), cond, 2, {})
    return [*found["output"], *found["middle"]]


def union(world: World) -> Any:
    """Three hints in one pass, against the core alone; and what is refused."""
    nodes, model = world.pack("nodes.union"), world.xl
    path = world.save("union 8", union_state(world, model, 8))
    hints = [world.hint(64, 64, seed) for seed in (1, 2, 3)]

    def typed(name: str, control: Any = None) -> Any:
        return nodes.SetControlType.execute(control or world.ours(path), name).args[0]

    def added(control: Any, name: str, hint: Tensor, scale: float = 1.0) -> Any:
        return nodes.AddUnionHint.execute(control, name, hint, scale).args[0]

    def applied(control: Any) -> Any:
        return world.with_ours(control, hints[0])[0][0][1]["control"]

    full = added(added(typed("depth"), "tile", hints[1], 0.5), "openpose", hints[2])
    found = residuals(world, model, applied(full))
    net = full.net
    pictures = dict(
        zip(("depth", "tile", "openpose"), (h.movedim(-1, 1) for h in hints), strict=True)
    )
    alone = applied(typed("depth"))
    alone._features = lambda *_: net.encode_hint(pictures, scales={"tile": 0.5})
    core = residuals(world, model, alone)

    def apart(control: Any) -> float:
        return max(map(distance, residuals(world, model, applied(control)), found))

    untyped = added(world.ours(path), "depth", hints[1])
    through_host = world.with_theirs(untyped, hints[0])
    large = added(added(typed("depth"), "tile", world.hint(40, 56, 2), 0.5), "openpose", hints[2])
    return {
        "core": max(map(distance, found, core)),
        "without a hint": apart(added(typed("depth"), "tile", hints[1], 0.5)),
        "another scale": apart(
            added(added(typed("depth"), "tile", hints[1]), "openpose", hints[2])
        ),
        "no type": sentence(lambda: world.with_ours(untyped, hints[0])),
        "no type, model door": sentence(lambda: world.patched(model, untyped, hints[0])),
        "no type, host's apply": sentence(lambda: world.sample(model, through_host)),
        "wrong type": sentence(lambda: typed("fog")),
        "twice": sentence(lambda: added(added(typed("depth"), "tile", hints[1]), "tile", hints[2])),
        "as Apply's": sentence(
            lambda: world.with_ours(added(typed("tile"), "tile", hints[1]), hints[0])
        ),
        "no union": sentence(lambda: typed("depth", world.ours(cldm(world)))),
        "size": list(residuals(world, model, applied(large))[0].shape),
        "doors": distance(
            world.sample(model, world.with_ours(full, hints[0])),
            world.sample(world.patched(model, full, hints[0])),
        ),
    }


def cldm(world: World) -> Path:
    return world.save("plain", world.controlnet(world.demo))


def handed(world: World) -> Any:
    """What the host's loader makes of a file goes through our Apply node as through the host's."""
    theirs = comfy.controlnet.load_controlnet(str(cldm(world)))
    path = world.save("flux", {k: torch.ones(1) for k in FLUX})
    load = comfy.controlnet.load_controlnet
    comfy.controlnet.load_controlnet = lambda *_: theirs
    try:
        loaded = world.files.load_control(path)
    finally:
        comfy.controlnet.load_controlnet = load
    hint, settings = world.hint(128, 128), (0.6, 0.2, 0.8)
    ours = world.with_ours(loaded.control, hint, *settings)
    size = (16, 16)
    return {
        "same": loaded.control is theirs,
        "notes": list(loaded.notes),
        "apart": distance(
            world.sample(world.demo, ours, size),
            world.sample(world.demo, world.with_theirs(theirs, hint, *settings), size),
        ),
        "effect": distance(
            world.sample(world.demo, ours, size), world.sample(world.demo, None, size)
        ),
        "door": sentence(lambda: world.patched(world.demo, loaded.control, hint)),
    }


FLUX = ("controlnet_blocks.0.weight", "controlnet_x_embedder.weight")


def refused(world: World, folder: str) -> Any:
    """The Load node's answer to every other kind of file, and to files of no kind."""
    files = {path.stem: path for path in sorted(Path(folder).glob("*.safetensors"))}
    files["unknown"] = world.save("unknown", {"some.thing": torch.ones(2)})
    files["none"] = world.folder / "none.safetensors"
    return {name: sentence(partial(world.ours, path)) for name, path in files.items()}


def mismatch(world: World) -> Any:
    """Each family on a base of another one, by both doors; steps that were sampled nevertheless."""
    kohya = Case(world)
    adapter = {"channels": (64, 128, 256, 256)}
    files = {
        "cldm": (cldm(world), world.xl),
        "vector": (world.save("m xl", world.controlnet(world.xl)), world.sd),
        "union": (world.save("m union", union_state(world, world.xl)), world.wide),
        "t2i": (world.save("m t2i", adapter_state(world, **adapter)), world.xl),
        "t2i xl": (world.save("m t2i xl", adapter_state(world, kind="xl", **adapter)), world.sd),
        "control_lora": (world.save("m lora", lora_state(world, world.demo)), world.xl),
        "difference": (world.save("m diff", difference_state(world, world.demo)), world.sd),
        "lllite": (kohya.path, world.xl),
        "text": (world.save("m text", world.controlnet(kohya.model)), world.demo),
    }
    found = {}
    for name, (path, model) in files.items():
        control = world.ours(path)
        if name == "union":
            control = control.with_type("depth")
        found[name] = told(world, control, model)
    return found


def told(world: World, control: Any, model: Any) -> dict[str, Any]:
    """What both doors say of a control and a model, and how many steps were sampled."""
    steps: list[int] = []
    hint = world.hint()

    def count_step(step: int, *_: Any) -> None:
        steps.append(step)

    config = SimpleNamespace(unet_config={})
    foreign = SimpleNamespace(model=SimpleNamespace(model_config=config))
    return {
        "prompts": sentence(
            lambda: world.sample(model, world.with_ours(control, hint), callback=count_step)
        ),
        "door": sentence(lambda: world.patched(model, control, hint)),
        "steps": len(steps),
        "no UNet": sentence(lambda: world.patched(foreign, control, hint)),
    }


def leaks(world: World) -> Any:
    """Nets, patchers and callbacks that stay after loading and sampling several times."""
    files = {
        "cldm": cldm(world),
        "t2i": world.save("leak t2i", adapter_state(world, channels=(64, 128, 256, 256))),
        "lora": world.save("leak lora", lora_state(world, world.sd)),
    }

    def once() -> tuple[int, int, int]:
        for name, path in files.items():
            model = world.demo if name == "cldm" else world.sd
            control = world.ours(path)
            world.sample(model, world.with_ours(control, world.hint()), steps=1)
            world.sample(world.patched(model, control, world.hint()), steps=1)
        del model, control
        comfy.model_management.unload_all_models()
        comfy.model_management.cleanup_models()
        callbacks = [
            sum(len(found) for kind in base.callbacks.values() for found in kind.values())
            + sum(len(module._forward_hooks) for module in base.model.modules())
            for base in (world.demo, world.sd)
        ]
        return count(nn.Module), count(world.pack("nodes.host.control").HostControl), sum(callbacks)

    once()
    return {"first": once(), "second": once()}


def settings(world: World) -> Any:
    """What the Load and the Inspect node say."""
    path = cldm(world)
    load = world.files.load_control
    nodes = world.pack("nodes.load")
    adapter = world.save("heads t2i", adapter_state(world, channels=(64, 128, 256, 256)))
    shuffled = world.save("net_shuffle", world.controlnet(world.demo))
    named = nodes.LoadControlNet.execute("net_shuffle.safetensors", "auto", 0)
    changed = load(path, head_channels=32)
    hint = world.hint()
    plain, heads = (
        world.sample(world.demo, world.with_ours(control, hint))
        for control in (load(path).control, changed.control)
    )
    bound = world.save("heads lora", lora_state(world, world.demo))
    return {
        "auto": list(load(path).notes),
        "on": list(load(path, pooling=True).notes),
        "off": list(load(shuffled, pooling=False).notes),
        "shuffle": named.args[1],
        "pooled": [load(path, pooling=on).control.pooled for on in (None, True, False)],
        "pooled lora": [load(bound, pooling=on).control.pooled for on in (True, False)],
        "heads": distance(plain, heads),
        "head_channels": changed.control.net.config.unet.num_head_channels,
        "heads of others": sentence(lambda: load(bound, head_channels=32)),
        "wrong heads": sentence(lambda: load(path, head_channels=48)),
        "inspect": nodes.InspectControlNet.execute("plain.safetensors").args[0],
        "pooled adapter": list(load(adapter, pooling=True).notes),
    }


def cases(folder: str) -> dict[str, Callable[[World], Any]]:
    """folder: of files of other kinds."""
    return {
        "union": union,
        "handed": handed,
        "refused": lambda world: refused(world, folder),
        "mismatch": mismatch,
        "leaks": leaks,
        "settings": settings,
    }
