"""The training loop: one loop that shows what a step is."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor

from ..diffusion import NoiseSchedule
from ..errors import CldmError
from .batches import stand_in
from .config import TrainConfig
from .loss import min_snr, training_loss
from .noise import draw
from .optimizers import learning_rate
from .session import Session, opened, require_room
from .watching import Shown, Watcher

if TYPE_CHECKING:
    from ..config import Prediction
    from .batches import Batch, Batches
    from .convergence import Convergence
    from .evaluate import Evaluator
    from .history import History
    from .trainables import Trainable

log = logging.getLogger("cldm_core")

Say = Callable[[str], None]
LAST, BEST = "last.safetensors", "best.safetensors"
EVALUATED = "evaluated"
"""The fact of a checkpoint that all is written of the evaluation of its step."""
SCHEDULE = NoiseSchedule()
NAMED_AT_MOST = 16
SKIPPED_AT_MOST = 32
"""Steps in a row that a loss scale may leave out; each halves it."""


@dataclass(frozen=True)
class Fitted:
    """What a run came to.

    step: optimizer steps behind the net; stopped: whether it was asked to stop before the last.
    net: the file of the trained net; best: that of the one with the best score, and its score; None
    where none was scored, and where a run goes on without evaluations: the best one is then of
    before. loss: the mean of the last steps that were noted, NaN where none was taken.
    """

    step: int
    stopped: bool
    net: Path
    best: Path | None
    score: float | None
    convergence: Convergence | None
    loss: float


def fit(
    trainable: Trainable,
    batches: Batches,
    config: TrainConfig,
    *,
    out: Path,
    evaluator: Evaluator | None = None,
    history: History | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    resume: bool = False,
    begun: Callable[[], None] | None = None,
    shown: Shown | None = None,
    say: Say = log.info,
) -> Fitted:
    """Trains up to config.steps optimizer steps and writes everything into `out`.

    progress: called as (step, steps) after each step. stop: asked after each step and after what is
    evaluated behind it; where it is true, the state is saved and the run ends. resume: go on from
    the last whole checkpoint in `out`, where there is one: the run then ends with the weights of
    one that was never stopped, bit for bit on a CPU. begun: called once nothing speaks against the
    run any more, such as settings that differ from the checkpoint's. shown: called with each
    evaluation. say: takes sentences for the user.

    Raises CldmError, with the batch named, where the loss is no finite number, and where a file of
    the data is gone, a checkpoint damaged or the disk full; the run's state stays whole. Of several
    processes all raise it.
    """
    with ExitStack() as stack:
        accelerator = stack.enter_context(opened(config))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_memory_told())
        session = stack.enter_context(closing(Session(trainable, config, accelerator, out)))
        main = accelerator.is_main_process
        watcher = Watcher(evaluator, history, config, say=say, shown=shown, main=main)
        step = saved = _start(session, watcher, batches, resume, say)
        with session.together():
            if begun:
                begun()
        stream = iter(batches.iterate(step * config.accumulation))
        stack.callback(getattr(stream, "close", lambda: None))
        losses = _Losses(session, stream)
        stopping, skipped = False, 0
        while True:
            if step > saved and (stopping or _due(step, config)):
                session.save(step, _facts(watcher, step))
                saved = step
            if not stopping and watcher.due(step) and not any(session.agreed(watcher.knows(step))):
                with _rescue(session, step, saved):
                    saved = _evaluate(session, watcher, step, saved, out)
                # It takes minutes. Of a run without a step there would be nothing to save.
                (stopping,) = session.agreed(step > 0 and stop is not None and stop())
                if stopping:
                    continue
            if stopping or step >= config.steps:
                break

            session.set_rate(learning_rate(config, step))
            parts = []
            for part in range(config.accumulation):
                with accelerator.accumulate(*session.models):
                    loss, names = losses.of(step, part)
                    accelerator.backward(loss)
                parts.append((loss.detach(), names))
            norm = accelerator.clip_grad_norm_(session.parameters, config.clip or math.inf)

            loss = session.mean(torch.stack([loss for loss, _ in parts]))
            bad = not session.finite(loss, norm) or skipped > SKIPPED_AT_MOST
            wishes = stop is not None and stop(), bad, losses.failure is not None
            stopping, bad, failed = session.agreed(*wishes)
            if failed:
                session.optimizer.zero_grad()
                raise _stopped(session, session.told(losses.failure), step, saved)
            if bad:
                _refuse(session, parts, step, saved)
            session.optimizer.step()
            session.optimizer.zero_grad()
            skipped = skipped + 1 if session.left_out(norm) else 0
            session.ema.update(step)

            step += 1
            with session.together() if watcher.writes(step) else nullcontext():
                watcher.note(step, float(loss), learning_rate(config, step - 1), float(norm))
            if progress:
                progress(step, config.steps)
        return _finish(session, watcher, step, out)


def _due(step: int, config: TrainConfig) -> bool:
    return step % config.save_every == 0 or step >= config.steps


def _start(session: Session, watcher: Watcher, batches: Batches, resume: bool, say: Say) -> int:
    """The step to go on from; raises CldmError where the folder holds another run."""
    folder, world = session.checkpoints.folder, session.accelerator.num_processes
    if getattr(batches, "world", 1) != world:
        raise CldmError(
            f"The batches are made for {getattr(batches, 'world', 1)} processes, and {world} "
            f"train: give each process batches with its rank and their number."
        )
    main = session.accelerator.is_main_process
    with session.together():
        require_room(folder.parent, session.config, resume=resume)
        if main:
            _sweep(folder.parent)
    saved = session.resume(say) if resume else None
    evaluated = saved is not None and EVALUATED in saved.facts
    with session.together():
        watcher.start(None if saved is None else saved.step, evaluated=evaluated)
        if saved is None and main:
            (folder.parent / BEST).unlink(missing_ok=True)  # of a run that came to no checkpoint
    if saved is not None:
        say(f"Going on from step {saved.step}, of the checkpoint {saved.folder}.")
    if saved is None and resume:
        say(f"There is no checkpoint in {folder} yet: the run starts anew.")
    return 0 if saved is None else saved.step


def _sweep(out: Path) -> None:
    """Clears what a process left that was killed while it wrote a net."""
    for name in (LAST, BEST):
        for part in out.glob(f"{Path(name).stem}*{Path(name).suffix}.*.part"):
            part.unlink(missing_ok=True)


def _facts(watcher: Watcher, step: int) -> dict[str, Any]:
    """What is noted with the checkpoint of a step; nothing where it is not evaluated yet."""
    return {**watcher.facts(step), EVALUATED: True} if watcher.knows(step) else {}


@contextmanager
def _rescue(session: Session, step: int, saved: int) -> Iterator[None]:
    """Saves the state where what is done within fails, for all processes, and tells both."""
    try:
        yield
    except (CldmError, OSError) as error:
        raise _stopped(session, str(error), step, saved) from error


def _stopped(session: Session, told: str, step: int, saved: int) -> CldmError:
    """What ends a run at a step: the state is saved, and that said behind what went wrong."""
    if step > saved:
        session.save(step, {})
        saved = step
    if not step:
        return CldmError(f"{told} The run stops before its first step.")
    return CldmError(
        f"{told} The run stops at step {step}; resume it, and it goes on from step {saved}."
    )


class _Losses:
    """The losses of the run's batches; behind the first failure those of a stand-in.

    Of several processes the others are within a step by then, which can't end without this one's
    gradients: it goes through, and all of them throw the step away.
    """

    def __init__(self, session: Session, stream: Iterator[Batch]) -> None:
        self.session, self.stream = session, stream
        self.failure: str | None = None

    def of(self, step: int, part: int) -> tuple[Tensor, tuple[str, ...]]:
        """The loss of the next batch, and the names of its pairs."""
        device = self.session.accelerator.device
        if self.failure is None:
            named = ""
            try:
                with _memory_told():
                    batch = next(self.stream).to(device, torch.float32)
                    named = f" The batch holds the pairs {_shown(batch.names)}."
                    return _loss(self.session, batch, step, part), batch.names
            except (CldmError, OSError) as error:
                # Its words alone: the error itself holds what was computed by then.
                self.failure = f"{error}{named}"
        batch = stand_in(self.session.trainable.unet.config).to(device)
        return _loss(self.session, batch, step, part), batch.names


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (", .." if len(names) > NAMED_AT_MOST else "")


def _loss(session: Session, batch: Batch, step: int, part: int) -> Tensor:
    """The loss of one batch, with noise and timesteps that belong to this step and part."""
    config, accelerator = session.config, session.accelerator
    prediction = cast("Prediction", config.prediction or session.trainable.unet.config.prediction)
    noise, timesteps = draw(
        batch.latents,
        SCHEDULE.timesteps,
        (config.seed, step, part),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    weights = None
    if config.min_snr:
        weights = min_snr(SCHEDULE, timesteps, config.min_snr, prediction)
    with accelerator.autocast():
        return training_loss(
            session.unet,
            session.net,
            batch.latents,
            noise,
            timesteps,
            batch.context,
            batch.hint,
            schedule=SCHEDULE,
            prediction=prediction,
            y=batch.y,
            only_mid_control=session.trainable.only_mid_control,
            weights=weights,
        )


def _refuse(
    session: Session, parts: list[tuple[Tensor, tuple[str, ...]]], step: int, saved: int
) -> NoReturn:
    """Saves the state before the step, if it is sound, and raises CldmError with the pairs."""
    session.optimizer.zero_grad()
    everything = [(name, bool(loss.isfinite())) for loss, names in parts for name in names]
    seen = session.gathered(everything)
    names = [name for name, good in seen if not good] or [name for name, _ in seen]
    if step > saved and session.sound():
        session.save(step, {})
        saved = step
    raise CldmError(
        f"The loss of step {step + 1} is no finite number, with the pairs {_shown(names)}. "
        f"Nothing was learnt from them. Look at these pairs (a check of the data tells what is "
        f"wrong with it), or take a lower learning rate, and resume the run: it goes on from step "
        f"{saved}. A run in fp16 may have to start anew in bf16."
    )


def _evaluate(session: Session, watcher: Watcher, step: int, saved: int, out: Path) -> int:
    """Scores the net, keeps it where it is the best so far; gives the step saved last."""
    with session.together(), _memory_told(), session.averaged():
        better = watcher.evaluate(session.trainable.net, step)
    (better,) = session.agreed(better)
    if step > saved and better:
        session.save(step, {})
        saved = step
    with session.together():
        if step and better:
            session.save_net(out / BEST, step, watcher.facts(step))
        # At the end: a run that is cut off before this goes on with this evaluation.
        session.annotate(step, _facts(watcher, step))
    return saved


def _finish(session: Session, watcher: Watcher, step: int, out: Path) -> Fitted:
    with session.together():
        session.save_net(out / LAST, step, watcher.facts(step))
    # Without evaluations it would be the net of a step long before this one.
    best = out / BEST if watcher.evaluates and (out / BEST).exists() else None
    return Fitted(
        step,
        step < session.config.steps,
        out / LAST,
        best,
        watcher.best_score if watcher.evaluates else None,
        watcher.convergence,
        watcher.loss,
    )


@contextmanager
def _memory_told() -> Iterator[None]:
    """Makes a sentence of a GPU's memory that is full."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise CldmError(
            "The GPU's memory is full: take a smaller batch_size, of the samples too, with more "
            "accumulation, or checkpointing, and resume the run; or start anew in precision bf16, "
            "with optimizer adamw8bit, or with kind control_lora or lllite. "
            f"({' '.join(str(error).split())})"
        ) from error
