"""One resumable training loop for all stages of the embedded model."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..whole_files import whole_file

log = logging.getLogger("cldm_core")

Metrics = dict[str, float]
M = TypeVar("M", bound=nn.Module)

RECORD_EVERY = 50
SAVE_SECONDS = 60


@dataclass(frozen=True)
class Plan:
    """How one stage is trained; `evaluate_every` 0 means never."""

    steps: int
    batch: int
    lr: float
    seed: int
    warmup: int = 100
    floor: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.999
    evaluate_every: int = 0


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a cosine from lr down to floor * lr."""
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.lr * (plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * done)))


class Ema:
    """Exponential moving average of weights, warmed up so that early steps don't linger."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.sources = list(module.state_dict().values())
        self.weights = {key: value.detach().clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), self.sources, 1 - decay)


def graphed(module: M, *sample: Tensor) -> M:
    """On a GPU, `module` as CUDA graphs of its forward and backward for inputs like `sample`.

    These nets are so small that starting their kernels one by one takes longer than running them.
    Elsewhere the module as it is.
    """
    if not sample[0].is_cuda:
        return module
    return cast("M", torch.cuda.make_graphed_callables(module, sample))


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """torch.save to a temporary name, synced, then renamed: the file is whole or absent."""
    with whole_file(path) as part, open(part, "wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())


def train(
    name: str,
    module: nn.Module,
    loss_of: Callable[[np.random.Generator, torch.Generator], Tensor],
    plan: Plan,
    folder: Path,
    *,
    evaluate: Callable[[dict[str, Tensor]], Metrics] | None = None,
    report: Callable[[str], None] = log.info,
) -> dict[str, Tensor]:
    """Trains `module` until plan.steps, going on from folder/NAME.pt; returns averaged weights.

    Each step draws from generators seeded by (seed, step), NumPy's and one of PyTorch's on the
    module's device, so a resumed run sees the batches it would have seen. The record of losses and
    metrics is folder/NAME.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    record = folder / f"{name}.jsonl"
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, plan.lr, weight_decay=plan.weight_decay, fused=True)
    ema, start = Ema(module, plan.ema), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        ema.weights, start = state["ema"], state["step"]
    else:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        record.write_text(json.dumps({"plan": asdict(plan), "device": where}) + "\n")
    window, since = [], time.monotonic()
    saved = since
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(plan, step)
        rng = np.random.default_rng((plan.seed, step))
        noise = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + step)
        loss = loss_of(rng, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(step)
        # A GPU works on while the next step is prepared: its losses are read together.
        window.append(loss.detach())
        done = step + 1
        if done % RECORD_EVERY == 0 or done == plan.steps:
            row: Metrics = {"step": done, "loss": torch.stack(window).mean().item()}
            row["seconds_per_step"] = (time.monotonic() - since) / len(window)
            if evaluate and plan.evaluate_every and done % plan.evaluate_every == 0:
                row |= evaluate(ema.weights)
            with open(record, "a") as handle:
                handle.write(json.dumps(row) + "\n")
            report(f"{name} " + " ".join(f"{key} {value:.5g}" for key, value in row.items()))
            window, since = [], time.monotonic()
        if time.monotonic() - saved > SAVE_SECONDS or done == plan.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**state, "ema": ema.weights, "step": done}, checkpoint)
            saved = time.monotonic()
    return ema.weights
