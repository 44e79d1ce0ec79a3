"""Inside a host: how near pictures of the embedded model come to exact ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from apply_variants import BF16, EXACT, NONE, REUSE_2, REUSE_3, VARIANTS, Variant
from apply_world import Missing, World, call
from torch import Tensor

import nodes

PROMPT = "hut"
STEPS = 25
"""As in the pack's workflows."""


def psnr(picture: Tensor, exact: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of pictures in [0, 1]; 200 where they are equal."""
    error = float((picture - exact).square().mean())
    return -10 * torch.tensor(max(error, 1e-20)).log10().item()


def pictures(world: World, variant: Variant, seeds: int) -> tuple[list[Tensor], list[float]]:
    """Decoded pictures, one for each seed, and the drift that the control told of each."""
    encode = nodes.CLIPTextEncode().encode
    prompts = (encode(world.clip, PROMPT)[0], encode(world.clip, "")[0])
    (hint,) = call("CLDM_Canny", world.example)
    control = None if variant.by == NONE else world.net(variant)
    behind = world.controlled(variant, control, prompts, hint)
    found, drifts = [], []
    for seed in range(seeds):
        latents = world.sample(behind, STEPS, seed=seed)
        found.append(nodes.VAEDecode().decode(world.vae, {"samples": latents})[0].clamp(0, 1))
        drifts += drift(behind)
    return found, drifts


def drift(prompts: tuple[Any, Any]) -> list[float]:
    """The largest drift that the control of these prompts told of its last sampling, if any."""
    control = prompts[0][0][1].get("control")
    told = control.applied.counts.drift if control else []
    return [round(max(told), 4)] if told else []


def compare(core: Any, task: dict[str, Any], say: Callable[..., None]) -> None:
    """PSNR of each way that isn't exact against the exact pictures of the same seeds."""
    world = World(core, True, None)
    named = {variant.name: variant for variant in VARIANTS}
    exact, _ = pictures(world, named[EXACT], task["seeds"])
    for name in (REUSE_2, REUSE_3, BF16, NONE):
        try:
            found, drifts = pictures(world, named[name], task["seeds"])
        except Missing as reason:
            say("missing", variant=name, reason=str(reason))
            continue
        values = [round(psnr(*pair), 2) for pair in zip(found, exact, strict=True)]
        say("quality", variant=name, psnr=values, drift=drifts)
