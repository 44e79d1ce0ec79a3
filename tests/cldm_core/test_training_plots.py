"""Plots, sheets and logs of a run."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.training.convergence import Convergence
from controlnet_pack.cldm_core.training.evaluate import Evaluation, HeldOut
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    YELLOW,
    Curves,
    smoothed,
    training_plot,
)
from controlnet_pack.cldm_core.training.samples import (
    YELLOW as LINE,
)
from controlnet_pack.cldm_core.training.samples import (
    Layout,
    Samples,
    sample_sheet,
)
from controlnet_pack.cldm_core.training.scores import SCORES
from controlnet_pack.cldm_core.training.tensorboard import TensorBoard

DARK = [0x1E, 0x1E, 0x1E]
SIDE = 64
JUMP = Convergence(350, (300, 400), 0.3, 0.7, 600, score=SCORES["edge_f1"])


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def lit(picture: np.ndarray, colour: str) -> np.ndarray:
    return (picture == rgb(colour)).all(axis=-1)


def noted(folder: Path, *, score: str = "edge_f1", evaluations: int = 12) -> History:
    """A run that converges between the steps 300 and 400."""
    history = History(folder)
    low, high = (0.3, 0.7) if SCORES[score].higher_is_better else (40.0, 10.0)
    for index in range(evaluations):
        step, value = 100 * index, high if index > 3 else low
        norms = dict.fromkeys(("hint", "z0", "z1", "middle"), 0.1 * index)
        each = [0.9 * value, 1.1 * value]
        history.note(step, adherence=value, per_picture=each, score=score, zero_norms=norms)
        history.note(step + 50, loss=0.1 + 0.01 * (-1) ** index, lr=1e-5)
    return history


def evaluation(step: int, count: int = 3, grey: int = 0, score: float | None = 0.5) -> Evaluation:
    pictures = tuple(np.full((SIDE, SIDE, 3), grey + place, np.uint8) for place in range(count))
    each = () if score is None else tuple(score + 0.01 * place for place in range(count))
    return Evaluation(step, score, each, pictures, scored_by=SCORES["edge_f1"])


def held_out(count: int = 3, target: bool = True) -> list[HeldOut]:
    hint, other = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 200, np.uint8)
    one = HeldOut("pair", "a hut", hint, other if target else None)
    return [replace(one, name=f"pair {place}") for place in range(count)]


def test_a_plot_is_a_dark_picture(tmp_path) -> None:
    plot = training_plot(noted(tmp_path))
    assert (plot.dtype, plot.ndim, plot.shape[2]) == (np.uint8, 3, 3)
    assert plot[0, 0].tolist() == plot[-1, -1].tolist() == DARK


def test_a_plot_has_all_curves(tmp_path) -> None:
    plot = training_plot(noted(tmp_path))
    for colour in (GREEN, BLUE, ORANGE, PURPLE):
        assert lit(plot, colour).sum() > 300, colour


def test_the_sudden_convergence_is_marked_and_named(tmp_path) -> None:
    with_, without = noted(tmp_path / "a"), noted(tmp_path / "b", evaluations=4)
    assert lit(training_plot(with_), YELLOW).sum() > 300  # the letters; the line is translucent
    assert not lit(training_plot(without), YELLOW).any()


def test_a_convergence_that_is_known_is_marked_as_it_is(tmp_path) -> None:
    history = noted(tmp_path, evaluations=4)
    plot = training_plot(history, convergence=JUMP)
    assert lit(plot, YELLOW).sum() > 300


def test_a_falling_score_is_plotted_with_its_best_below(tmp_path) -> None:
    history = noted(tmp_path, score="colour_error")
    curves = Curves.of(history)
    assert (curves.title, curves.higher_is_better, curves.said(10.0)) == (
        "colour error",
        False,
        "10.0 dE",
    )
    assert lit(training_plot(history), YELLOW).sum() > 300


def test_what_was_not_noted_is_left_out(tmp_path) -> None:
    history = History(tmp_path)
    history.note(10, loss=0.5)
    history.note(20, loss=0.4)
    plot = training_plot(history)
    assert lit(plot, BLUE).sum() > 300
    assert not lit(plot, GREEN).any()
    assert plot.shape[0] < training_plot(noted(tmp_path / "all")).shape[0]


def test_one_note_is_seen(tmp_path) -> None:
    history = History(tmp_path)
    history.note(10, loss=0.5)
    assert lit(training_plot(history), BLUE).any()


def test_an_evaluation_of_an_untrained_net_is_plotted(tmp_path) -> None:
    history = History(tmp_path)
    history.note(0, adherence=0.3, score="edge_f1", zero_norms={"z0": 0.0})
    assert lit(training_plot(history), GREEN).any()


def test_losses_that_are_no_numbers_are_shown_where_they_are(tmp_path) -> None:
    history = History(tmp_path)
    for step in range(1, 20):
        history.note(step, loss=math.nan if step == 10 else 0.1)
    columns = np.nonzero(lit(training_plot(history), ORANGE).any(axis=0))[0]
    assert len(columns)
    assert lit(training_plot(history), BLUE).sum() > 300


def test_losses_that_are_all_no_numbers_are_plotted(tmp_path) -> None:
    history = History(tmp_path)
    history.note(1, loss=math.nan)
    assert lit(training_plot(history), ORANGE).any()


def test_a_huge_loss_does_not_flatten_the_rest(tmp_path) -> None:
    history = History(tmp_path)
    for step in range(1, 300):
        history.note(step, loss=50.0 if step == 150 else 0.1 + 0.02 * (step < 100))
    rows = np.nonzero(lit(training_plot(history), BLUE).any(axis=1))[0]
    assert np.ptp(rows) > 40


def test_titles_may_hold_anything(tmp_path) -> None:
    history = noted(tmp_path)
    assert training_plot(history, title="$x^2_{ 边缘 \\frac").std() > 0


def test_an_empty_history_says_what_to_do(tmp_path) -> None:
    with pytest.raises(CldmError, match="no record yet: train a few steps first"):
        training_plot(History(tmp_path))


def test_without_matplotlib_a_sentence_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CldmError, match="needs matplotlib, which is not installed: pip install"):
        training_plot(noted(tmp_path))


def test_smoothing_keeps_a_line_and_quietens_noise() -> None:
    steps = np.arange(200.0)
    middle = slice(20, -20)
    np.testing.assert_allclose(smoothed(steps, 2 * steps)[middle], 2 * steps[middle], rtol=1e-6)
    noise = np.random.default_rng(0).normal(size=200)
    assert smoothed(steps, noise).std() < 0.4 * noise.std()


def test_smoothing_leaves_out_what_is_no_number() -> None:
    values = np.ones(50)
    values[7], values[20] = np.nan, np.inf
    np.testing.assert_allclose(smoothed(np.arange(50.0), values), 1.0)


def test_a_sheet_has_a_row_for_each_hint_and_a_column_for_each_step() -> None:
    sheet = sample_sheet(held_out(3), [evaluation(step) for step in (0, 100, 200)])
    layout = Layout(3, 5, (128, 128))
    assert sheet.shape == (layout.height, layout.width, 3)
    assert sheet[0, 0].tolist() == DARK


def test_pictures_are_where_they_belong() -> None:
    sheet = sample_sheet(
        held_out(3), [evaluation(0, grey=50), evaluation(100, grey=100)], convergence=None
    )
    layout = Layout(3, 4, (128, 128))
    for row in range(3):
        middles = [
            sheet[round(box.top + box.height / 2), round(box.left + box.width / 2)].tolist()
            for box in (layout.place(row, column) for column in range(4))
        ]
        assert middles == [[0] * 3, [200] * 3, [50 + row] * 3, [100 + row] * 3]


def test_evaluations_are_shown_in_the_order_of_their_steps() -> None:
    sheet = sample_sheet(held_out(1), [evaluation(100, 1, 90), evaluation(0, 1, 30)])
    box = Layout(1, 4, (128, 128)).place(0, 2)
    assert sheet[round(box.top) + 60, round(box.left) + 60].tolist() == [30] * 3


def test_without_targets_there_is_no_column_for_them() -> None:
    steps = [evaluation(step) for step in range(0, 600, 100)]
    with_, without = (sample_sheet(held_out(3, target), steps) for target in (True, False))
    assert with_.shape[1] - without.shape[1] == 138


def test_of_many_evaluations_some_are_shown_with_both_ends() -> None:
    many = [evaluation(step, 1, step) for step in range(0, 200, 10)]
    sheet = sample_sheet(held_out(1), many, columns=4)
    layout = Layout(1, 6, (128, 128))
    middles = [
        int(sheet[round(box.top) + 60, round(box.left) + 60, 0])
        for box in (layout.place(0, column) for column in range(2, 6))
    ]
    assert (middles[0], middles[-1]) == (0, 190)


def test_of_many_hints_the_first_are_shown() -> None:
    sheet = sample_sheet(held_out(20), [evaluation(0, 20)], rows=4)
    assert sheet.shape[0] == Layout(4, 3, (128, 128)).height


def test_a_line_stands_between_the_columns_around_the_convergence() -> None:
    steps = [evaluation(step) for step in (0, 300, 400, 500)]
    sheet = sample_sheet(held_out(3), steps, convergence=JUMP)
    layout = Layout(3, 6, (128, 128))
    columns = np.nonzero(lit(sheet, LINE).sum(axis=0) > 100)[0]
    assert len(columns)
    assert layout.place(0, 3).right <= columns[0]
    assert columns[-1] <= layout.place(0, 4).left


def test_pictures_of_several_shapes_keep_their_aspect() -> None:
    wide = HeldOut("wide", "", np.full((64, 128, 3), 255, np.uint8))
    tall = HeldOut("tall", "", np.full((128, 64, 3), 255, np.uint8))
    pictures = (wide.hint, tall.hint)
    sheet = sample_sheet([wide, tall], [Evaluation(0, None, (), pictures)])
    layout = Layout(2, 2, (128, 128))
    for row, share in ((0, (0.5, 1.0)), (1, (1.0, 0.5))):
        box = layout.place(row, 0)
        cell = sheet[round(box.top) :, round(box.left) :][:128, :128, 0] > 250
        assert cell[:, 64].mean() == pytest.approx(share[0], abs=0.05)
        assert cell[64].mean() == pytest.approx(share[1], abs=0.05)


def test_sheets_without_samples_are_refused() -> None:
    with pytest.raises(CldmError, match="no samples yet: evaluate the net first"):
        sample_sheet(held_out(1), [])
    with pytest.raises(CldmError, match="at step 7 has 2 pictures for 3 held-out hints"):
        sample_sheet(held_out(3), [evaluation(7, 2)])


def test_samples_are_read_as_they_were_noted(tmp_path) -> None:
    history, samples = History(tmp_path), Samples(tmp_path)
    for step in (0, 100):
        one = evaluation(step, grey=step)
        samples.note(one)
        history.note(step, **one.numbers())
    read = samples.read(history)
    assert [one.step for one in read] == samples.steps() == [0, 100]
    for one, grey in zip(read, (0, 100), strict=True):
        expected = evaluation(one.step, grey=grey)
        assert all(map(np.array_equal, one.pictures, expected.pictures))
        assert (one.score, one.per_picture) == (expected.score, expected.per_picture)
        assert one.scored_by is SCORES["edge_f1"]


def test_of_many_samples_some_are_read_with_both_ends(tmp_path) -> None:
    samples = Samples(tmp_path)
    assert samples.read(History(tmp_path), most=3) == []
    for step in range(0, 100, 10):
        samples.note(evaluation(step, 1))
    steps = [one.step for one in samples.read(History(tmp_path), most=3)]
    assert (len(steps), steps[0], steps[-1]) == (3, 0, 90)


def test_more_than_a_hundred_samples_keep_their_order(tmp_path) -> None:
    samples = Samples(tmp_path)
    samples.note(evaluation(0, 120))
    (read,) = samples.read(History(tmp_path))
    assert [int(picture[0, 0, 0]) for picture in read.pictures] == list(range(120))


def test_samples_of_a_step_are_replaced_as_a_whole(tmp_path) -> None:
    samples = Samples(tmp_path)
    samples.note(evaluation(100, 3))
    samples.note(evaluation(100, 2))
    (read,) = samples.read(History(tmp_path))
    assert len(read.pictures) == 2
    assert [one.name for one in samples.folder.iterdir()] == ["0000100"]


def test_samples_that_were_being_written_do_not_count(tmp_path) -> None:
    samples = Samples(tmp_path)
    (samples.folder / "0000200.part").mkdir(parents=True)
    samples.note(evaluation(100))
    assert samples.steps() == [100]


def test_rewinding_removes_later_samples(tmp_path) -> None:
    samples = Samples(tmp_path)
    for step in (0, 100, 200):
        samples.note(evaluation(step))
    samples.rewind(100)
    assert samples.steps() == [0, 100]
    Samples(tmp_path / "none").rewind(0)


def test_samples_that_can_not_be_written_are_told(tmp_path) -> None:
    (tmp_path / "samples").write_text("a file in the place of the folder")
    with pytest.raises(CldmError, match="samples of step 100 can't be written to"):
        Samples(tmp_path).note(evaluation(100))


def test_without_tensorboard_a_sentence_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CldmError, match=r"not installed: pip install tensorboard, or leave them"):
        TensorBoard(tmp_path)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_what_the_history_gets(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard (pip install tensorboard)")
    one = evaluation(100)
    with TensorBoard(tmp_path) as board:
        board.note(50, loss=0.5, lr=1e-3)
        board.note(100, **one.numbers())
        board.note(100, zero_norms={"z0": 0.25})
        board.picture(100, "samples", one.pictures[0])
        board.sentence(100, "convergence", str(JUMP))
    found = scalars(tmp_path)
    assert found["loss"] == [(50, 0.5)]
    assert found["adherence"] == [(100, 0.5)]
    assert found["zero_norms/z0"] == [(100, 0.25)]
    assert set(found) == {"loss", "lr", "adherence", "zero_norms/z0"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_hides_what_a_resumed_run_logs_anew(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard (pip install tensorboard)")
    with TensorBoard(tmp_path) as board:
        for step in (10, 20, 30):
            board.note(step, loss=1.0)
    with TensorBoard(tmp_path, from_step=20) as board:
        board.note(30, loss=2.0)
    assert scalars(tmp_path)["loss"] == [(10, 1.0), (20, 1.0), (30, 2.0)]
