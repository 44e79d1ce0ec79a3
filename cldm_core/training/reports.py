"""What a run leaves for the eye: samples on disk, one sheet of them, one plot, TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CldmError
from ..pictures import write_picture
from .convergence import find
from .evaluate import Evaluation, HeldOut
from .history import History
from .plots import training_plot
from .samples import MOST_COLUMNS, Samples, sample_sheet
from .tensorboard import FOLDER as LOGS
from .tensorboard import TensorBoard

PLOT, SHEET = "plot.png", "samples.png"


class Reports(History):
    """The history of a run in a folder, and what is drawn of it after each evaluation."""

    def __init__(
        self, folder: Path, held_out: Sequence[HeldOut] = (), *, tensorboard: bool = False
    ) -> None:
        super().__init__(folder)
        self.folder, self.held_out = folder, held_out
        self.samples = Samples(folder)
        self.board = TensorBoard(folder) if tensorboard else None

    def note(self, step: int, **numbers: Any) -> None:
        super().note(step, **numbers)
        if self.board is not None:
            with _told(self.folder / LOGS):
                self.board.note(step, **numbers)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self.samples.rewind(step)
        if self.board is not None:
            with _told(self.folder / LOGS):
                self.board.close()
                self.board = TensorBoard(self.folder, from_step=step)

    def show(self, evaluation: Evaluation) -> None:
        """Keeps the pictures of an evaluation, and draws sheet and plot anew."""
        self.samples.note(evaluation)
        evaluations = self.samples.read(self, MOST_COLUMNS)
        sheet = sample_sheet(self.held_out, evaluations, convergence=find(self))
        with _told(self.folder / SHEET):
            write_picture(sheet, self.folder / SHEET)
        if self.board is not None:
            with _told(self.folder / LOGS):
                self.board.picture(evaluation.step, "samples", sheet)
        self.plot()

    def plot(self) -> None:
        """Draws the plot; nothing where there is nothing to plot."""
        if self.read():
            plot = training_plot(self)
            with _told(self.folder / PLOT):
                write_picture(plot, self.folder / PLOT)

    def close(self) -> None:
        if self.board is not None:
            with _told(self.folder / LOGS):
                self.board.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes a sentence of what can't be written."""
    try:
        yield
    except OSError as error:
        raise CldmError(
            f"{path} can't be written ({error.strerror or error}): make room on the disk, and "
            f"resume the run."
        ) from error
