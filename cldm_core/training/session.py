"""A run's nets on their devices: wrapped by accelerate, saved as checkpoints, read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..checkpoint import save
from ..checkpoint.read import read
from ..errors import CheckpointMismatch, CldmError
from .checkpoints import Checkpoints, Saved
from .config import TrainConfig, pinned_differences
from .ema import Ema
from .layers import in_layers
from .optimizers import make_optimizer
from .saving import save_net, save_unet

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .trainables import Trainable

T = TypeVar("T")

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
WEIGHTS, AVERAGES, NET = "trained.safetensors", "averages.safetensors", "net.safetensors"
CHECKPOINTS = "checkpoints"
PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which samples alone."""

Say = Callable[[str], None]


def processes() -> tuple[int, int, int]:
    """This process's rank, how many there are, and its rank on this machine, as torchrun says."""
    rank, world, local = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return rank, world, local


def device_of(config: TrainConfig) -> torch.device:
    """Where this process trains."""
    if config.device == "auto" and torch.cuda.is_available():
        return torch.device("cuda", processes()[2])
    if config.device == "auto" and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextmanager
def opened(config: TrainConfig) -> Iterator[Accelerator]:
    """An accelerator for one run; afterwards another run may ask for another one.

    Raises CldmError where accelerate isn't there, or the device can't do what is asked for.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError as error:
        raise CldmError(
            f"Training needs the package accelerate ({error}): pip install accelerate."
        ) from error
    try:
        accelerator = Accelerator(
            mixed_precision=PRECISIONS[config.precision],
            gradient_accumulation_steps=config.accumulation,
            # Without it, processes on machines without a GPU would each train alone.
            cpu=device_of(config).type == "cpu",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise CldmError(
            f"precision is {config.precision}, which the device {device_of(config).type} can't do "
            f"({error}): take bf16 or fp32."
        ) from error
    try:
        yield accelerator
    finally:
        # accelerate keeps one state for the whole process, which outlives its user.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)
        GradientState._reset_state()


def require_accelerator(config: TrainConfig) -> None:
    """Raises CldmError where a run can't be opened; see `opened`."""
    with opened(config):
        pass


def part() -> None:
    """Ends the work with other processes, once this one has nothing more to train."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def require_room(out: Path, config: TrainConfig, *, resume: bool) -> None:
    """Raises CldmError where `out` holds a run that isn't to be gone on with."""
    if not resume and Checkpoints(out / CHECKPOINTS, config.keep).steps():
        raise CldmError(f"{out} holds a run already: resume it, or choose another folder.")


class Session:
    """The wrapped nets, optimizer and averages of one run, and its checkpoints.

    weights: what is trained, by names that start with `net.` or `unet.`.
    """

    def __init__(
        self, trainable: Trainable, config: TrainConfig, accelerator: Accelerator, out: Path
    ) -> None:
        device = accelerator.device
        trainable.unet.to(device)
        trainable.net.to(device)
        trainable = in_layers(trainable, config, accelerator)
        self.trainable, self.config, self.accelerator = trainable, config, accelerator
        self.checkpoints = Checkpoints(out / CHECKPOINTS, config.keep)
        self.weights = {
            f"{part}.{name}": parameter
            for part, module in (("net", trainable.net), ("unet", trainable.unet))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        optimizer = make_optimizer(trainable.parameters(), config, device)
        self.net: Any = accelerator.prepare(trainable.net)
        # A frozen UNet has no gradients to share.
        trained = any(name.startswith("unet.") for name in self.weights)
        self.unet: Any = accelerator.prepare(trainable.unet) if trained else trainable.unet
        self.optimizer: Any = accelerator.prepare(optimizer)
        self.models = [self.net, self.unet] if trained else [self.net]
        self.parameters = trainable.parameters()
        self.ema = Ema(self.weights, config.ema)
        accelerator.register_save_state_pre_hook(lambda _, weights, __: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, _: models.clear())

    def close(self) -> None:
        """Takes accelerate's wrappers off the nets again."""
        for model in self.models:
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def averaged(self) -> AbstractContextManager[None]:
        """While it lasts the nets have the averaged weights, if weights are averaged."""
        return self.ema.swapped_in()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails within for one process fails for all: none waits for what never comes.

        Nothing within may wait for other processes. Raises the process's own error, and CldmError
        with the same words where another process has failed.
        """
        failure: CldmError | OSError | None = None
        try:
            yield
        except (CldmError, OSError) as error:
            failure = error
        if any(self.agreed(failure is not None)):
            told = self.told(None if failure is None else str(failure))
            raise failure or CldmError(told)

    def told(self, failure: str | None) -> str:
        """What went wrong, of the first process that knows it; asked by all of them."""
        return self.gathered([] if failure is None else [failure])[0]

    def agreed(self, *wishes: bool) -> tuple[bool, ...]:
        """Each wish of any process is a wish of all."""
        if self.accelerator.num_processes == 1:
            return wishes
        flags = torch.tensor([float(wish) for wish in wishes], device=self.accelerator.device)
        return tuple(bool(flag) for flag in self.accelerator.reduce(flags, "sum"))

    def finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step may be taken; a loss scale of fp16 sees to infinite gradients itself."""
        seen = loss if self.accelerator.scaler is not None else loss + norm
        return bool(torch.isfinite(seen))

    def left_out(self, norm: Tensor) -> bool:
        """Whether the loss scale of fp16 leaves a step with gradients of this norm out.

        accelerate only knows whether the optimizer was called, and a fused one is called always.
        """
        return self.accelerator.scaler is not None and not bool(torch.isfinite(norm))

    def sound(self) -> bool:
        """Whether all trained weights are finite numbers."""
        return all(bool(torch.isfinite(weight).all()) for weight in self.weights.values())

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the losses of all processes."""
        mean: Tensor = self.accelerator.reduce(losses.mean(), "mean")
        return mean

    def gathered(self, items: list[T]) -> list[T]:
        """The items of all processes."""
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def save(self, step: int, facts: dict[str, Any]) -> None:
        """Writes the checkpoint of a step.

        Raises CldmError where it can't be written, or its weights are no numbers to go on from.
        """
        if not self.sound():
            raise CldmError(
                f"After step {step} weights of the net are infinite or no numbers, so that state "
                f"is not saved: resume the run from the checkpoint before it, with a lower "
                f"learning rate."
            )
        main = self.accelerator.is_main_process
        with self.together():
            if main:
                self.checkpoints.open(step)
        with self.together():
            self.checkpoints.fill(step, lambda folder: self._write(folder, step, facts))
        with self.together():
            if main:
                self.checkpoints.seal(step, {**facts, "config": self.config.to_dict()})

    def annotate(self, step: int, facts: dict[str, Any]) -> None:
        """Notes facts with a checkpoint that is there already."""
        if self.accelerator.is_main_process:
            self.checkpoints.annotate(step, facts)

    def _write(self, folder: Path, step: int, facts: dict[str, Any]) -> None:
        self.accelerator.save_state(str(folder))
        if not self.accelerator.is_main_process:
            return
        save(self.weights, folder / WEIGHTS)
        if self.ema.averages:
            save(self.ema.averages, folder / AVERAGES)
        self.save_net(folder / NET, step, facts)

    def save_net(self, path: Path, step: int, facts: dict[str, Any]) -> None:
        """The trained net as a file that load_control and hosts read, averaged if there are means.

        Beside it the UNet, NAME_unet, where its decoder is trained too. Only the first process
        writes them. Raises CldmError where they can't be written.
        """
        if not self.accelerator.is_main_process:
            return
        try:
            with self.averaged():
                save_net(self.trainable, self.config, path, step=step, **facts)
                save_unet(self.trainable, self.config, path)
        except OSError as error:
            raise CldmError(
                f"The net can't be written to {path} ({error.strerror or error}): make room on the "
                f"disk and resume the run."
            ) from error

    def resume(self, say: Say) -> Saved | None:
        """Reads the last whole checkpoint, if there is one, into the nets and the optimizer.

        Raises DamagedCheckpoint where there is none that is whole, and CldmError where the settings
        have changed in what can't be changed, or processes find different checkpoints.
        """
        with self.together():
            saved = self._read(say)
        found = set(self.gathered(["none" if saved is None else str(saved.step)]))
        if len(found) > 1:
            raise CldmError(
                f"The processes find checkpoints of different steps in {self.checkpoints.folder} "
                f"({', '.join(sorted(found))}): choose a folder that all machines see."
            )
        if saved is not None and self.accelerator.is_main_process:
            self.checkpoints.set_aside(saved.step, say)
        return saved

    def _read(self, say: Say) -> Saved | None:
        saved = self.checkpoints.latest(say)
        if saved is None:
            return None
        changed = pinned_differences(saved.facts.get("config", {}), self.config)
        if changed:
            raise CldmError(
                f"The run in {self.checkpoints.folder.parent} was started with "
                f"{', '.join(changed)}: set it as it was, or start anew in another folder; "
                f"there init goes on from the net of this one."
            )
        stored = [(self.weights, read(saved.folder / WEIGHTS).tensors)]
        if self.ema.averages:
            stored.append((self.ema.averages, read(saved.folder / AVERAGES).tensors))
        for weights, tensors in stored:
            if _shapes(weights) != _shapes(tensors):
                raise CheckpointMismatch(
                    f"{saved.folder} holds weights of another net than the one that is trained: "
                    f"choose the settings that the run was started with, or another folder."
                )
        self.accelerator.load_state(str(saved.folder))
        # A checkpoint lies between two steps, however many batches made those before it.
        self.accelerator.step = 0
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        with torch.no_grad():
            for weights, tensors in stored:
                for key, value in weights.items():
                    value.copy_(tensors[key])
        return saved


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}
