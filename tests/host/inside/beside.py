"""A pack of nodes for the tests of a running host: failures, tiles, a base model, what is left."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

SCALE = 8
OPTIONS = 5
"""The place of the transformer options among the arguments of a UNet and of apply_model."""


class RunsOutOfMemory:
    """A MODEL that runs out of memory in the middle of a step; the error says what was held."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  the host's name
        return {"required": {"model": ("MODEL",), "step": ("INT", {"default": 1})}}

    def patch(self, model: Any, step: int) -> tuple[Any]:
        def forward(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
            options = args[OPTIONS]
            if at_step(options) == step:
                raise comfy.model_management.OOM_EXCEPTION(json.dumps(remains()))
            out: Tensor = executor(*args, **kwargs)
            return out

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", forward)
        return (patched,)


def at_step(options: dict[str, Any]) -> int:
    """The number of the step that is sampled, from 0."""
    return int((options["sample_sigmas"] - options["sigmas"][0]).abs().argmin())


class ShowRemains:
    """What controls and models hold at this moment, as JSON."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  the host's name
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:  # noqa: N802  the host's name
        return float("nan")

    def show(self) -> dict[str, Any]:
        return {"ui": {"text": [json.dumps(remains())]}}


def remains() -> dict[str, int]:
    """What is held for a sampling by the controls and models that are alive, counted."""
    gc.collect()
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        # Of the class alone: looking at an instance can wake proxies.
        names = {kind.__name__ for kind in type(thing).__mro__}
        if "Steered" in names:
            found["controls"] += 1
            found["sampling"] += thing.clock is not None
            found["kept"] += len(thing.reuse._kept)
            found["encoded"] += len(getattr(thing, "encoded", ()))
            found["hints"] += thing.cond_hint is not None
        elif issubclass(type(thing), ModelPatcher):
            own = thing.callbacks.get("on_cleanup", {})
            found["callbacks"] += sum(map(len, own.values()))
    return {name: found[name] for name in (*HELD, "controls")}


HELD = ("sampling", "kept", "encoded", "hints", "callbacks")


class Handed:
    """A control that gives the sampler nothing: a pack asks it for each tile itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_control(self, *args: Any) -> None:
        return None


class SamplesInTiles:
    """A MODEL that is asked for tiles side by side, and a control that gets its hint in tiles.

    As public packs do it: the tiles are pieces of the latents of a step, one by one or all in one
    batch, and `cond_hint` holds the pieces of the hint that belong to them.
    """

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    FUNCTION = "patch"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  the host's name
        sides = dict.fromkeys(("positive", "negative"), ("CONDITIONING",))
        width = ("INT", {"default": 64})
        return {
            "required": {"model": ("MODEL",), **sides, "width": width, "together": ("BOOLEAN",)}
        }

    def patch(self, model: Any, positive: Any, negative: Any, width: int, together: bool) -> Any:
        control = positive[0][1].get("control")
        handed = control and Handed(control)

        def wrapped(side: Any) -> Any:
            return [[text, {**options, "control": handed}] for text, options in side]

        patched = model.clone()
        patched.set_model_unet_function_wrapper(Tiler(control, width // SCALE, together))
        if control is None:
            return patched, positive, negative
        return patched, wrapped(positive), wrapped(negative)


class Tiler:
    """What stands between sampler and UNet; width: of a tile, in latents."""

    def __init__(self, control: Any, width: int, together: bool) -> None:
        self.control, self.width, self.together = control, width, together
        self.hints: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, function: Any, call: dict[str, Any]) -> Tensor:
        x, c = call["input"], call["c"]
        tiles = [slice(at, at + self.width) for at in range(0, x.shape[-1], self.width)]
        out = torch.zeros_like(x)
        for group in [tiles] if self.together else [[tile] for tile in tiles]:
            cut = torch.cat([x[..., tile] for tile in group])
            times = torch.cat([call["timestep"]] * len(group))
            part = {
                key: torch.cat([value] * len(group)) if isinstance(value, Tensor) else value
                for key, value in c.items()
            }
            if self.control is not None:
                rows, options = len(call["cond_or_uncond"]), c["transformer_options"]
                self.control.cond_hint = self.hint(group, x)
                part["control"] = self.control.get_control(cut, times, part, rows, options)
            found = function(cut, times, **part)
            for tile, piece in zip(group, found.chunk(len(group)), strict=True):
                out[..., tile] = piece
        return out

    def hint(self, group: list[slice], x: Tensor) -> Tensor:
        """The hint of each row of each tile, made once."""
        key = tuple(tile.start for tile in group)
        if key not in self.hints:
            size = (SCALE * x.shape[-2], SCALE * x.shape[-1])
            whole = torch.nn.functional.interpolate(self.control.cond_hint_original, size)
            pieces = [whole[..., SCALE * tile.start : SCALE * tile.stop] for tile in group]
            rows = [piece.expand(x.shape[0], -1, -1, -1) for piece in pieces]
            self.hints[key] = torch.cat(rows)
        return self.hints[key]


class LoadSmallModel:
    """A base model in the shape of SD 1.5, narrow, with random weights: adapters fit it."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  the host's name
        return {"required": {}}

    def load(self) -> tuple[Any]:
        return (world().base_model(world().SD),)


@cache
def world() -> ModuleType:
    """The models of the tests that run inside of a host."""
    path = Path(__file__).resolve().with_name("world.py")
    spec = importlib.util.spec_from_file_location("cldm_test_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NODE_CLASS_MAPPINGS = {
    f"Test{kind.__name__}": kind
    for kind in (RunsOutOfMemory, ShowRemains, SamplesInTiles, LoadSmallModel)
}
