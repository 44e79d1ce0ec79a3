"""What is kept of a run while it goes on: its history, evaluations, and which one was best."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CldmError
from .convergence import Convergence, find

if TYPE_CHECKING:
    from torch import nn

    from .config import TrainConfig
    from .evaluate import Evaluation, Evaluator, HeldOut
    from .history import History

Say = Callable[[str], None]
Shown = Callable[["Evaluation"], None]


class Watcher:
    """Evaluates every so many steps and notes what happens; of several processes only the first.

    shown: called with each evaluation, such as to draw its pictures. best_score: None while nothing
    was scored; loss: the mean of the last steps that were noted.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        history: History | None,
        config: TrainConfig,
        *,
        say: Say,
        shown: Shown | None = None,
        main: bool = True,
    ) -> None:
        self.evaluator, self.history, self.config = evaluator, history if main else None, config
        self.say, self.shown, self.main = say, shown, main
        self.best_score: float | None = None
        self.convergence: Convergence | None = None
        self.loss = math.nan
        self._held_out = _named(evaluator.held_out) if evaluator else ""
        self._sign = -1.0 if evaluator and not evaluator.score.higher_is_better else 1.0
        self._scores: dict[int, float | None] = {}
        self._losses: list[float] = []
        self._since = time.monotonic()

    def start(self, step: int | None, *, evaluated: bool) -> None:
        """Goes on from a step, or anew from None: what was noted after it is dropped.

        evaluated: whether all was written of the evaluation of that step; else it is done again.
        Raises CldmError where other pairs are held out than before.
        """
        if self.history is None:
            return
        if step is not None and self.evaluator is not None:
            self._check_held_out(self.history)
        self.history.rewind(-1 if step is None else step)
        for row in self.history.read():
            if "zero_norms" in row and (evaluated or row["step"] != step):
                self._scores[row["step"]] = score = row.get("adherence")
                if score is not None:
                    self._is_best(score)
        self.convergence = find(self.history)

    @property
    def evaluates(self) -> bool:
        """Whether anything is evaluated in this run."""
        return self.evaluator is not None and self.config.evaluate_every > 0

    def due(self, step: int) -> bool:
        """Whether to evaluate before the step that follows this many steps."""
        if not self.evaluates:
            return False
        return step % self.config.evaluate_every == 0 or step == self.config.steps

    def knows(self, step: int) -> bool:
        """Whether this step was evaluated already; of several processes the first alone knows."""
        return step in self._scores

    def evaluate(self, net: nn.Module, step: int) -> bool:
        """Samples and scores; says whether it is the best so far."""
        self._scores[step] = None
        if self.evaluator is None or not self.main:
            return False
        evaluation = self.evaluator(net, step)
        if self.history is not None:
            self.history.note(step, **evaluation.numbers(), held_out=self._held_out)
        self._tell(evaluation)
        if self.shown is not None:
            self.shown(evaluation)
        self._since = time.monotonic()
        self._scores[step] = score = evaluation.score
        return score is not None and self._is_best(score)

    def facts(self, step: int) -> dict[str, Any]:
        """Of a step's checkpoint its score, and its merit, of which more is better.

        {} where it wasn't scored, and in a run that evaluates nothing: it knows no measure.
        """
        score = self._scores.get(step)
        if score is None or math.isnan(score) or not self.evaluates:
            return {}
        return {"score": score, "merit": self._sign * score}

    def writes(self, step: int) -> bool:
        """Whether `note` writes a line at this step."""
        return step % self.config.log_every == 0 or step == self.config.steps

    def note(self, step: int, loss: float, rate: float, norm: float) -> None:
        """Notes a step; every so many of them a line with the mean loss."""
        self._losses.append(loss)
        if not self.writes(step):
            return
        now = time.monotonic()
        self.loss = sum(self._losses) / len(self._losses)
        seconds = (now - self._since) / len(self._losses)
        self._losses, self._since = [], now
        if self.history is not None:
            numbers = {"loss": self.loss, "lr": rate, "grad_norm": norm}
            self.history.note(step, **numbers, seconds_per_step=seconds)

    def _check_held_out(self, history: History) -> None:
        if any(row.get("held_out", self._held_out) != self._held_out for row in history.read()):
            raise CldmError(
                "Other pairs are held out than before, as the data holds others: pairs that were "
                "trained on would be scored. Take the data as it was, leave evaluations out "
                "(evaluate_every 0), or start anew in another folder; there init goes on from the "
                "net of this one."
            )

    def _is_best(self, score: float) -> bool:
        """Whether it is better than all before it; it is then the best."""
        best = self.best_score
        if math.isnan(score) or (best is not None and self._sign * score <= self._sign * best):
            return False
        self.best_score = score
        return True

    def _tell(self, evaluation: Evaluation) -> None:
        if evaluation.score is not None and evaluation.scored_by is not None:
            score = evaluation.scored_by
            self.say(f"Step {evaluation.step}: {score.title} {score.said(evaluation.score)}.")
        found = None if self.history is None else find(self.history)
        if found is not None and str(found) != str(self.convergence):
            self.say(str(found))
        self.convergence = found


def _named(held_out: Sequence[HeldOut]) -> str:
    """Another text for other pairs, or another order."""
    names = "\n".join(one.name for one in held_out)
    return hashlib.sha256(names.encode("utf-8", "replace")).hexdigest()[:16]
