"""One row of training.py in a process of its own: what is trained, its steps, its memory."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cldm_core import SD15, ControlledUNet, ControlNet, ControlNetConfig, NoiseSchedule  # noqa: E402
from cldm_core.training import lean, make_trainable, training_loss  # noqa: E402

FULL, FULL_LEAN, DIFFUSERS = "full", "full_lean", "diffusers"
OURS, OURS_PLAIN = "ours", "ours_plain"
SMALL = replace(SD15, model_channels=32)
TOKENS = 77
SLICE = 1 << 26
"""Numbers that AdamW steps on at once where its whole state has no room."""
PARTS = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Shape:
    """What a step is fed: latents of size x size, so many at once."""

    size: int
    batch: int
    checkpointing: bool = False


@dataclass
class Task:
    """The modules of a row, what trains, and its loss for inputs."""

    modules: tuple[nn.Module, ...]
    weights: list[nn.Parameter]
    loss: Callable[[dict[str, Tensor]], Tensor]


# What is trained.


def full(config: Any, device: torch.device, half: bool, checkpointing: bool, lean_: bool) -> Task:
    """The whole UNet. With checkpointing, of the same blocks as in ours."""
    unet = filled(lambda: ControlledUNet(config), device).train()
    if lean_ or checkpointing:
        unet = lean(unet, checkpointing=checkpointing)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        with autocast(device, half):
            predicted = unet(inputs["x"], inputs["timesteps"], inputs["context"])
        return F.mse_loss(predicted.float(), inputs["noise"])

    return Task((unet,), list(unet.parameters()), loss)


def ours(config: Any, device: torch.device, half: bool, checkpointing: bool, lean_: bool) -> Task:
    """A ControlNet by training_loss; in half precision as accelerate runs it."""
    unet = filled(lambda: ControlledUNet(config), device, torch.bfloat16 if half else None)
    net = filled(lambda: ControlNet(ControlNetConfig(config)), device)
    trainable = make_trainable("controlnet", unet, init=net, checkpointing=checkpointing)
    trainable = trainable if lean_ else trainable.plain()
    wrapped = Autocast(trainable.net, device) if half else trainable.net
    schedule = NoiseSchedule()

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        names = ("latents", "noise", "timesteps", "context", "hint")
        given = [inputs[name] for name in names]
        return training_loss(trainable.unet, wrapped, *given, schedule=schedule)

    return Task((trainable.unet, trainable.net), trainable.parameters(), loss)


def diffusers(config: Any, device: torch.device, half: bool, checkpointing: bool) -> Task:
    """The step of examples/controlnet/train_controlnet.py."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    options = {
        "block_out_channels": tuple(config.model_channels * m for m in config.channel_mult),
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": config.num_heads,
    }
    kind = torch.bfloat16 if half else torch.float32
    unet = filled(lambda: UNet2DConditionModel(**options), device, kind).requires_grad_(False)
    net = filled(lambda: ControlNetModel(**options), device).train()
    if checkpointing:
        net.enable_gradient_checkpointing()

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        x, context = inputs["x"].to(kind), inputs["context"].to(kind)
        with autocast(device, half):
            down, middle = net(
                x,
                inputs["timesteps"],
                encoder_hidden_states=context,
                controlnet_cond=inputs["hint"].to(kind),
                return_dict=False,
            )
        (predicted,) = unet(
            x,
            inputs["timesteps"],
            encoder_hidden_states=context,
            down_block_additional_residuals=[item.to(kind) for item in down],
            mid_block_additional_residual=middle.to(kind),
            return_dict=False,
        )
        return F.mse_loss(predicted.float(), inputs["noise"].float())

    return Task((unet, net), list(net.parameters()), loss)


def task_of(row: str, config: Any, device: torch.device, half: bool, checkpointing: bool) -> Task:
    if row in (FULL, FULL_LEAN):
        return full(config, device, half, checkpointing, row == FULL_LEAN)
    if row in (OURS, OURS_PLAIN):
        return ours(config, device, half, checkpointing, row == OURS)
    return diffusers(config, device, half, checkpointing)


class Autocast(nn.Module):
    """A net that computes in bf16, its results widened, as accelerate prepares it."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net, self.device = net, device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with autocast(self.device, True):
            return self.net(*args, **kwargs)


def autocast(device: torch.device, half: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def filled(build: Callable[[], Any], device: torch.device, dtype: Any = None) -> Any:
    """The net with random weights, zero convolutions too, so that no work can be left out."""
    with torch.device("meta"):
        net = build()
    net = net.to(dtype or torch.float32).to_empty(device=device)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim < 2:
                weight.fill_(float(name.endswith("weight")))
                continue
            flat = weight.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
            weight.mul_(weight[0].numel() ** -0.5)
    return net


def inputs_of(shape: Shape, config: Any, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(shape.batch, *sizes, generator=generator).to(device)

    latents, noise = (draw(4, shape.size, shape.size) for _ in range(2))
    timesteps = torch.randint(1000, (shape.batch,), generator=generator).to(device)
    return {
        "latents": latents,
        "noise": noise,
        "timesteps": timesteps,
        "x": NoiseSchedule().add_noise(latents, noise, timesteps),
        "context": draw(TOKENS, config.context_dim),
        "hint": draw(3, 8 * shape.size, 8 * shape.size).sigmoid(),
    }


# What it takes.


class Clock:
    """Seconds of the clock and of the processor for each part of each step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.processor: dict[str, list[float]] = {part: [] for part in PARTS}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._wait()
        started, busy = time.perf_counter(), time.process_time()
        yield
        self._wait()
        self.seconds[name].append(time.perf_counter() - started)
        self.processor[name].append(time.process_time() - busy)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def kept_bytes(task: Task, inputs: dict[str, Tensor]) -> int:
    """What the forward keeps for the backward: each memory once, weights left out.

    Everything that is kept is held while it is counted, so that no memory is met twice.
    """
    weights = {w.untyped_storage().data_ptr() for m in task.modules for w in m.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that knows its own graph would keep it for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.loss(inputs)
    total = sum(found.values())
    del loss
    return total


def sizes_of(task: Task) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's two moments."""
    trained = sum(weight.nbytes for weight in task.weights)
    return {
        "weights": sum(weight.nbytes for m in task.modules for weight in m.parameters()),
        "gradients": trained,
        "optimizer": 2 * trained,
    }


def step_in_slices(weights: list[nn.Parameter], clock: Clock, steps: int) -> None:
    """AdamW's steps, a part of the weights after the other, as its whole state has no room."""
    seconds, busy = [0.0] * steps, [0.0] * steps
    for part in slices(weights):
        optimizer = torch.optim.AdamW(part, lr=1e-9)
        optimizer.step()  # makes the state
        for step in range(steps):
            inner = Clock(clock.device)
            with inner.part("optimizer"):
                optimizer.step()
            seconds[step] += inner.seconds["optimizer"][0]
            busy[step] += inner.processor["optimizer"][0]
    clock.seconds["optimizer"] = seconds
    clock.processor["optimizer"] = busy


def slices(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    part: list[nn.Parameter] = []
    for weight in weights:
        part.append(weight)
        if sum(item.numel() for item in part) >= SLICE:
            yield part
            part = []
    if part:
        yield part


def peak_bytes(device: torch.device) -> int:
    """The most memory of this process, or on a GPU of its tensors, since `forget_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(dict(line.split(":", 1) for line in status.splitlines())["VmHWM"].split()[0])


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measured(task: Task, shape: Shape, config: Any, device: torch.device, steps: int) -> Any:
    """A record of some steps, the first not counted; `steps` 0 counts the memory alone."""
    inputs, clock = inputs_of(shape, config, device), Clock(device)
    record: dict[str, Any] = {"bytes": {**sizes_of(task), "kept": kept_bytes(task, inputs)}}
    if not steps:
        return record
    whole = device.type == "cuda"
    optimizer = torch.optim.AdamW(task.weights, lr=1e-9) if whole else None
    for step in range(steps + 1):
        if step == 1:
            clock = Clock(device)
            forget_peak(device)
        if optimizer is not None:
            optimizer.zero_grad()
        else:
            for weight in task.weights:
                weight.grad = None
        before = torch.cuda.memory_allocated(device) if whole else 0
        with clock.part("forward"):
            loss = task.loss(inputs)
        if whole:  # what is kept, by the allocator's own count
            record["held"] = torch.cuda.memory_allocated(device) - before
        with clock.part("backward"):
            loss.backward()
        if optimizer is not None:
            with clock.part("optimizer"):
                optimizer.step()
    record["peak"] = peak_bytes(device)
    if optimizer is None:
        step_in_slices(task.weights, clock, steps)
    record |= {"seconds": clock.seconds, "processor": clock.processor}
    return record


def run(row: str, shapes: list[Shape], *, small: bool, device: str, half: bool, steps: int) -> Any:
    """The records of a row, by shape; a text where the device's memory has no room for one."""
    config, where = SMALL if small else SD15, torch.device(device)
    records = []
    for checkpointing in (False, True):
        chosen = [shape for shape in shapes if shape.checkpointing == checkpointing]
        if not chosen:
            continue
        task = task_of(row, config, where, half, checkpointing)
        for shape in chosen:
            try:
                record = measured(task, shape, config, where, steps)
            except torch.cuda.OutOfMemoryError:
                record = {"refused": "out of memory"}
            for weight in task.weights:
                weight.grad = None
            gc.collect()
            if where.type == "cuda":
                torch.cuda.empty_cache()
            records.append({**vars(shape), **record})
        del task
        gc.collect()
    return records


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    asked = [Shape(**shape) for shape in order.pop("shapes")]
    print(f"\n{json.dumps(run(shapes=asked, **order))}")
