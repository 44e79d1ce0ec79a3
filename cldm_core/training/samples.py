"""Samples of held-out hints over a run: kept on disk, and drawn on one sheet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CldmError
from ..pictures import read_picture, write_picture
from ..pipeline import Picture
from ..sheets_canvas import BRIGHT, DIM, EMPTY, TEXT, Box, Canvas, evenly
from .convergence import Convergence
from .evaluate import Evaluation, HeldOut
from .history import History
from .scores import SCORES, Score

FOLDER = "samples"
MOST_COLUMNS, MOST_ROWS = 8, 12
MARGIN, TITLE, HEAD, GAP, CAPTION, ROUND = 32, 74, 58, 10, 30, 5
SMALLEST, LARGEST = 128, 176
"""Length of a thumbnail's longer side: the picture's own, within these."""
YELLOW = "#f2d04f"


class Samples:
    """The pictures of every evaluation, in folder/samples/STEP/NUMBER.png.

    A step's folder is whole or not there.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / FOLDER

    def note(self, evaluation: Evaluation) -> None:
        """Writes the pictures of an evaluation; raises CldmError where they can't be written."""
        place = self._place(evaluation.step)
        temporary = place.with_name(place.name + ".part")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            for number, picture in enumerate(evaluation.pictures):
                write_picture(picture, temporary / f"{number:04d}.png")
            if place.exists():
                shutil.rmtree(place)
            temporary.replace(place)
        except OSError as error:
            raise CldmError(
                f"The samples of step {evaluation.step} can't be written to {place} "
                f"({error.strerror}): make room or choose another folder, and resume."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def steps(self) -> list[int]:
        """The steps that there are samples of."""
        if not self.folder.is_dir():
            return []
        names = (one.name for one in self.folder.iterdir() if one.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def read(self, history: History, most: int | None = None) -> list[Evaluation]:
        """The evaluations by step, with the scores that the history has of them.

        most: of many so many, evenly spread with the first and the last.
        """
        rows = {row["step"]: row for row in history.read() if "zero_norms" in row}
        steps = self.steps()
        kept = (
            steps if most is None or not steps else [steps[at] for at in evenly(len(steps), most)]
        )
        return [self._read(step, rows.get(step, {})) for step in kept]

    def rewind(self, step: int) -> None:
        """Removes what was sampled after `step`; raises CldmError where it can't be removed."""
        try:
            for later in self.steps():
                if later > step:
                    shutil.rmtree(self._place(later))
        except OSError as error:
            raise CldmError(
                f"The samples after step {step} can't be removed from {self.folder} "
                f"({error.strerror}): they belong to no step any more. Remove them, and resume."
            ) from error

    def _read(self, step: int, row: dict[str, object]) -> Evaluation:
        pictures = tuple(read_picture(path) for path in sorted(self._place(step).glob("*.png")))
        each, score = row.get("per_picture"), row.get("adherence")
        return Evaluation(
            step,
            float(score) if isinstance(score, int | float) else None,
            tuple(float(one) for one in each) if isinstance(each, list) else (),
            pictures,
            scored_by=SCORES.get(str(row.get("score"))),
        )

    def _place(self, step: int) -> Path:
        return self.folder / f"{step:07d}"


@dataclass(frozen=True)
class Column:
    """A column of the sheet: its heading and its pictures, None where there is none."""

    title: str
    below: str
    pictures: Sequence[Picture | None]
    captions: Sequence[str]
    step: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels of the sheet."""

    rows: int
    columns: int
    cell: tuple[int, int]

    @property
    def width(self) -> int:
        return max(560, 2 * MARGIN + self.columns * (self.cell[0] + GAP) - GAP)

    @property
    def height(self) -> int:
        return MARGIN + TITLE + HEAD + self.rows * (self.cell[1] + CAPTION) + MARGIN - 8

    def head(self, column: int) -> Box:
        return Box(self._left(column), MARGIN + TITLE, self.cell[0], HEAD)

    def place(self, row: int, column: int) -> Box:
        top = MARGIN + TITLE + HEAD + row * (self.cell[1] + CAPTION)
        return Box(self._left(column), top, *self.cell)

    def _left(self, column: int) -> float:
        return MARGIN + column * (self.cell[0] + GAP)


def sample_sheet(
    held_out: Sequence[HeldOut],
    evaluations: Sequence[Evaluation],
    *,
    convergence: Convergence | None = None,
    title: str = "Samples over the steps",
    columns: int = MOST_COLUMNS,
    rows: int = MOST_ROWS,
) -> Picture:
    """A row for each held-out hint: the hint, the target, samples over the steps; (H, W, 3) uint8.

    Of many evaluations `columns` are shown, evenly spread with the first and the last, and of many
    hints the first `rows`. A yellow line stands where the sudden convergence was. Raises CldmError
    where there is no evaluation, or one of other hints.
    """
    _check(held_out, evaluations)
    hints = held_out[: max(1, rows)]
    ordered = sorted(evaluations, key=lambda one: one.step)
    shown = [ordered[place] for place in evenly(len(ordered), max(1, columns))]
    parts = _columns(hints, shown)
    layout = Layout(len(hints), len(parts), _cell(hints))
    canvas = Canvas(layout.width, layout.height)
    _title(canvas, layout, title, ordered, convergence)
    for place, column in enumerate(parts):
        _draw(canvas, layout, place, column)
    if convergence is not None:
        _mark(canvas, layout, parts, convergence)
    return canvas.finish()


def _check(held_out: Sequence[HeldOut], evaluations: Sequence[Evaluation]) -> None:
    if not held_out or not evaluations:
        raise CldmError("There are no samples yet: evaluate the net first.")
    for one in evaluations:
        if len(one.pictures) != len(held_out):
            raise CldmError(
                f"The evaluation at step {one.step} has {len(one.pictures)} pictures for "
                f"{len(held_out)} held-out hints: give those that it was made with."
            )


def _columns(hints: Sequence[HeldOut], evaluations: Sequence[Evaluation]) -> list[Column]:
    prompts = [one.prompt or one.name for one in hints]
    found = [Column("hint", "", [one.hint for one in hints], prompts)]
    if any(one.target is not None for one in hints):
        found.append(Column("target", "", [one.target for one in hints], []))
    for one in evaluations:
        score = one.scored_by
        below = "" if one.score is None else _said(one.score, score)
        captions = [_said(value, score) for value in one.per_picture[: len(hints)]]
        pictures = one.pictures[: len(hints)]
        found.append(Column(f"step {one.step}", below, pictures, captions, one.step))
    return found


def _said(value: float, score: Score | None) -> str:
    return f"{value:.2f}" if score is None else score.said(value)


def _cell(hints: Sequence[HeldOut]) -> tuple[int, int]:
    """Width and height that all hints fit in."""
    scaled = []
    for one in hints:
        height, width = one.hint.shape[:2]
        longest = max(height, width)
        by = min(max(longest, SMALLEST), LARGEST) / longest
        scaled.append((round(width * by), round(height * by)))
    return max(width for width, _ in scaled), max(height for _, height in scaled)


def _title(
    canvas: Canvas,
    layout: Layout,
    title: str,
    evaluations: Sequence[Evaluation],
    convergence: Convergence | None,
) -> None:
    width = layout.width - 2 * MARGIN
    canvas.text(Box(MARGIN, MARGIN - 4, width, 32), title, 25, BRIGHT, strong=True)
    scored_by = next((one.scored_by for one in evaluations if one.scored_by), None)
    text = f"with fixed seeds; below each its {scored_by.title}" if scored_by else "fixed seeds"
    if convergence is not None:
        text = str(convergence)
    canvas.text(Box(MARGIN, MARGIN + 34, width, 20), text, 14, TEXT)


def _draw(canvas: Canvas, layout: Layout, place: int, column: Column) -> None:
    head = layout.head(place)
    canvas.text(head._replace(height=24), column.title, 15, BRIGHT, "center")
    canvas.text(head._replace(top=head.top + 24, height=20), column.below, 14, TEXT, "center")
    for row, picture in enumerate(column.pictures):
        cell = layout.place(row, place)
        if picture is None:
            canvas.box(cell, EMPTY, radius=ROUND)
        else:
            canvas.picture(_within(cell, picture), picture, ROUND)
        if row < len(column.captions):
            below = Box(cell.left, cell.bottom + 2, cell.width, 18)
            canvas.text(below, column.captions[row], 12, DIM, "center")


def _within(cell: Box, picture: Picture) -> Box:
    """The largest box of the picture's aspect in the middle of the cell."""
    height, width = picture.shape[:2]
    by = min(cell.width / width, cell.height / height)
    across, down = width * by, height * by
    left, top = cell.left + (cell.width - across) / 2, cell.top + (cell.height - down) / 2
    return Box(left, top, across, down)


def _mark(
    canvas: Canvas, layout: Layout, columns: Sequence[Column], convergence: Convergence
) -> None:
    """A line between the last column before the convergence and the first after it."""
    later = [
        place
        for place, column in enumerate(columns)
        if column.step is not None and column.step >= convergence.step
    ]
    first = next(place for place, column in enumerate(columns) if column.step is not None)
    if not later or later[0] == first:
        return
    left = layout.head(later[0]).left - GAP / 2
    bottom = layout.place(layout.rows - 1, 0).bottom
    canvas.line([(left, layout.head(0).top), (left, bottom)], YELLOW, 2)
