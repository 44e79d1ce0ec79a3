"""A net of the host's loader for a transformer: residuals are tokens, counted from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.controlnet
import torch
from apply_stage import Stage, control_of, on_stage, replaced
from comfy_extras.nodes_easycache import EasyCacheNode
from torch import Tensor
from torch.nn import functional as F
from world import World, distance

STEPS = 4
DOUBLE, SINGLE = 4, 2
"""Blocks of Flux's two kinds; the host calls what is added to them `input` and `output`."""
PATCH = 2


class TokenControl(comfy.controlnet.ControlBase):
    """Stands in for the host's net for Flux: block i gets tokens that are all i + 1."""

    def __init__(self, calls: list[int] | None = None) -> None:
        super().__init__()
        self.calls = [] if calls is None else calls

    def copy(self) -> TokenControl:
        other = TokenControl(self.calls)
        self.copy_to(other)
        return other

    def get_control(self, x: Tensor, t: Tensor, *args: Any) -> Any:
        self.calls.append(x.shape[0])
        blocks = [torch.full_like(tokens_of(x), i + 1.0) for i in range(DOUBLE + SINGLE)]
        found = {"input": blocks[:DOUBLE], "output": blocks[DOUBLE:]}
        previous = self.previous_controlnet
        before = previous and previous.get_control(x, t, *args)
        return self.control_merge(found, before, None)


def tokens_of(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, N, 4 C)."""
    return F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)


class Transformer:
    """Stands in for the base model's forward and takes its control as the host's Flux does.

    seen: what was added to each block at each call, None where nothing.
    """

    def __init__(self) -> None:
        self.seen: list[list[Tensor | None]] = []

    def __call__(self, x: Tensor, *_: Any, control: Any = None, **__: Any) -> Tensor:
        tokens, added = tokens_of(x), []
        for slot, count in (("input", DOUBLE), ("output", SINGLE)):
            for i in range(count):
                add = None
                if control is not None:
                    items = control.get(slot)
                    if i < len(items):
                        add = items[i]
                added.append(add)
                tokens = tokens * 0.9 if add is None else tokens * 0.9 + add / 100
        self.seen.append(added)
        grid = (x.shape[-2] // PATCH, x.shape[-1] // PATCH)
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), PATCH)


@contextmanager
def transformer(stage: Stage) -> Iterator[Transformer]:
    """The stage's base model with another forward."""
    model = Transformer()

    def forward(x: Tensor, timesteps: Any, context: Any, y: Any, control: Any, *_: Any, **__: Any):
        return model(x, control=control)

    with replaced(stage.unet, "_forward", forward):
        yield model


class Softened(TokenControl):
    """As the host's nets for Qwen Fun, which soften their strength."""

    def copy(self) -> Softened:
        other = Softened(self.calls)
        self.copy_to(other)
        return other

    def get_control(self, *args: Any) -> Any:
        given, self.strength = self.strength, self.strength**0.5
        try:
            return super().get_control(*args)
        finally:
            self.strength = given


def first_call(stage: Stage, control: Any = None, **inputs: Any) -> list[Tensor | None]:
    """What the blocks of a call get."""
    with transformer(stage) as model:
        stage.sample(stage.applied(control or TokenControl(), **inputs), steps=1)
    return model.seen[0]


def strengths(added: list[Tensor | None]) -> list[float]:
    return [0.0 if item is None else round(float(item.mean()), 5) for item in added]


def weights(stage: Stage) -> Any:
    """Block weights, as text and as presets, with no control behind and with one."""
    node = stage.options.ControlWeights
    texts = {"0-1: 0.5, 5: 0": ("text", "0-1: 0.5, 5: 0"), "early": ("only early blocks", "")}
    found: dict[str, Any] = {"plain": strengths(first_call(stage))}
    for name, text in texts.items():
        options = node.execute("auto", *text).args[0]
        found[name] = strengths(first_call(stage, options=options))
        behind = stage.applied(TokenControl(), options=options)
        with transformer(stage) as model:
            stage.sample(stage.applied(TokenControl(), prompts=behind), steps=1)
        found[f"{name}, chain"] = strengths(model.seen[0])
    calls: list[int] = []
    nothing = node.execute("auto", "text", "rest: 0").args[0]
    with transformer(stage):
        stage.sample(stage.applied(TokenControl(calls), options=nothing), steps=STEPS)
    return {**found, "calls without weight": len(calls)}


def softened(stage: Stage) -> Any:
    """A net with a strength of its own kind: by the host's node, by ours, with a schedule."""
    by_host = stage.world.with_theirs(Softened(), stage.hint, 0.25, 0.0, 1.0)
    with transformer(stage) as model:
        stage.sample(by_host, steps=1)
    reuse = stage.options.ControlSpeed.execute(2).args[0]
    return {
        "host": strengths(model.seen[0]),
        "ours": strengths(first_call(stage, Softened(), strength=0.25)),
        "schedule": strengths(first_call(stage, Softened(), strength=0.25, schedule="0.5")),
        "reuse": strengths(first_call(stage, Softened(), strength=0.25, options=reuse)),
    }


def mask(stage: Stage) -> Any:
    """A mask that is white on the left."""
    half = torch.zeros(1, 128, 128)
    half[..., :64] = 1
    first = first_call(stage, mask=half)[0]
    side = stage.size[0] // PATCH
    columns = first.mean(dim=(0, 2)).unflatten(0, (side, side)).mean(dim=0)
    return {"columns": columns.tolist()}


def reuse(stage: Stage) -> Any:
    """Calls of the net where residuals are used again, and where its hint changes meanwhile."""
    options = stage.options.ControlSpeed.execute(2).args[0]
    found = {}
    for name, changed in (("calls", None), ("changed", 0)):
        calls: list[int] = []
        prompts = stage.applied(TokenControl(calls), hint=stage.hint.clone(), options=options)

        def change(step: int, *_: Any, changed: Any = changed, prompts: Any = prompts) -> None:
            if step == changed:
                control_of(prompts).cond_hint_original.mul_(0.5)

        with transformer(stage):
            stage.sample(prompts, steps=STEPS, callback=change)
        found[name] = len(calls)
    return found


def caches(stage: Stage) -> Any:
    """EasyCache with windows that leave the control out at the first and at the last steps."""
    steered, found = stage.world.pack("nodes.host.steered"), {}
    model = EasyCacheNode.execute(stage.model, 3.0, 0.15, 0.95, False).args[0]
    for name, window in {"all": (0.0, 1.0), "late": (0.5, 1.0), "early": (0.0, 0.5)}.items():
        calls: list[int] = []
        prompts = stage.applied(TokenControl(calls), window=window)
        with transformer(stage):
            lazy = stage.sample(prompts, model, steps=2 * STEPS)
            count = len(calls)
            with replaced(steered, "may_be_skipped", lambda _: False):
                eager = stage.sample(prompts, model, steps=2 * STEPS)
            plain = stage.sample(None, model, steps=2 * STEPS)
        found[name] = {
            "calls": count,
            "eager": len(calls) - count,
            "apart": distance(lazy, eager),
            "effect": distance(lazy, plain),
        }
    return found


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return on_stage(weights, softened, mask, reuse, caches)
