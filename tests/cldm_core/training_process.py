"""Trainings in processes of their own, which are killed or work together.

    python -m tests.cldm_core.training_process kills OUT COUNT
    torchrun --nproc-per-node 2 -m tests.cldm_core.training_process together OUT

Run in the pack's root.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tests.conftest  # noqa: F401  loads the pack
from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.training.batches import Batch
from controlnet_pack.cldm_core.training.checkpoints import Checkpoints
from controlnet_pack.cldm_core.training.evaluate import Evaluation
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.loop import fit
from controlnet_pack.cldm_core.training.scores import SCORES
from tests.cldm_core.training_runs import SmallBatches, small_config, small_trainable

LONG = {"steps": 12, "save_every": 1, "keep": 2}


def kills(out: Path, count: int) -> None:
    """Kills a run `count` times at random moments; prints the whole checkpoints after each."""
    # Sums are equal to the bit where as many threads make them; a fork has threads of its own.
    torch.set_num_threads(1)
    moments, checkpoints = random.Random(0), Checkpoints(out / "checkpoints", 2)
    for number in range(count):
        before = checkpoints.steps()
        child = os.fork()
        if not child:
            try:
                long_run(out)
            finally:
                os._exit(1)
        # Every other one gets as far as a checkpoint of its own, so that the run goes on.
        while number % 2 and checkpoints.steps() == before:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("The training ended by itself.")
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(json.dumps([checkpoints.read(step).step for step in checkpoints.steps()]))  # noqa: T201


def long_run(out: Path) -> None:
    config, history = small_config(out, **LONG), History(out)
    fit(small_trainable(), SmallBatches(), config, out=out, history=history, resume=True)


def together(out: Path) -> None:
    """One of two processes that train one net, first in runs where something fails."""
    rank = int(os.environ["RANK"])
    failing(out, rank)
    for steps in (4, 6):
        evaluated = small_config(out / "evaluated", steps=steps, evaluate_every=2)
        fit(
            small_trainable(), SmallBatches(2, rank, 2), evaluated, out=out / "evaluated",
            history=History(out / "evaluated"), evaluator=Unscored(), resume=True,
        )  # fmt: skip
    for name, options, settings in VARIANTS:
        config = small_config(out / name, accumulation=2, steps=3, save_every=1, **settings)
        history = History(out / name)
        batches = SmallBatches(2, rank, 2)
        trainable = small_trainable(**options)
        stop = [] if rank else [False, True]
        fit(
            trainable, batches, config, out=out / name, history=history,
            stop=lambda stop=stop: bool(stop) and stop.pop(0),
        )  # fmt: skip


def failing(out: Path, rank: int) -> None:
    """Runs in which something fails for one of two processes; what both say of it is kept."""

    def refused(name: str, place: Path | None = None, **given: Any) -> None:
        settings = {"save_every": 100, **given.pop("settings", {})}
        folder = place or out / name
        batches = given.pop("batches", None) or SmallBatches(2, rank, 2)
        try:
            fit(small_trainable(), batches, small_config(folder, **settings), out=folder, **given)
        except CldmError as error:
            (out / f"{name}-{rank}").write_text(str(error))

    def spoil(index: int, batch: Batch) -> Batch:
        if index == 1 and rank == 1:
            batch.latents[1, 0, 0, 0] = torch.nan
        return batch

    def vanish(index: int, batch: Batch) -> Batch:
        if index == 4 and rank == 1:
            raise CldmError("There is no file a.png.")
        return batch

    refused("bad", batches=SmallBatches(2, rank, 2, spoil))
    both = {"accumulation": 2}
    refused("vanished", batches=SmallBatches(2, rank, 2, vanish), settings=both)
    refused("vanished", settings={"steps": 3, **both}, resume=True)
    refused("unsampled", evaluator=Failing(), settings={"evaluate_every": 2})
    refused("unnoted", history=FullHistory(out / "unnoted"))
    (out / "full").mkdir(exist_ok=True)
    (out / "full" / "checkpoints").touch()
    refused("full", settings={"steps": 2})
    for resume in (False, True):
        refused("apart", out / f"apart-of-{rank}", settings={"steps": 2}, resume=resume)


class Unscored:
    """An evaluator that samples nothing."""

    score = SCORES["edge_f1"]
    held_out = ()

    def __call__(self, net: nn.Module, step: int) -> Evaluation:
        return Evaluation(step, None, (), ())


class Failing(Unscored):
    """An evaluator that fails behind the second step."""

    def __call__(self, net: nn.Module, step: int) -> Evaluation:
        if step:
            raise CldmError("The sample can't be scored.")
        return super().__call__(net, step)


class FullHistory(History):
    """A history on a full disk."""

    def note(self, step: int, **numbers: Any) -> None:
        raise CldmError("The record can't be written.")


VARIANTS = (
    ("plain", {}, {}),
    ("unlocked", {"sd_locked": False}, {"sd_locked": False, "clip": 0.01, "min_snr": 5.0}),
    ("middle", {"only_mid_control": True}, {"only_mid_control": True}),
)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder, *rest = sys.argv[1:]
    if mode == "kills":
        kills(Path(folder), int(rest[0]))
    else:
        together(Path(folder))
