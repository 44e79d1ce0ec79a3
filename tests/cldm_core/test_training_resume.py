"""A run that was stopped, killed or damaged goes on as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor

from controlnet_pack.cldm_core import CldmError, DamagedCheckpoint
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.pipeline import Picture
from controlnet_pack.cldm_core.training.batches import Batch, Batches
from controlnet_pack.cldm_core.training.checkpoints import MANIFEST, Checkpoints
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.loop import Fitted, fit
from controlnet_pack.cldm_core.training.reports import Reports
from controlnet_pack.cldm_core.training.signals import StopOnSignals
from controlnet_pack.cldm_core.training.sources import open_source
from controlnet_pack.cldm_core.training.tensorboard import TensorBoard

from .states import same
from .training_pairs import ToyEncoders, picture, unhinted, write_prompt_json
from .training_process import LONG
from .training_runs import SMALL, SmallBatches, small_config, small_trainable, state_of

ROOT = Path(__file__).resolve().parents[2]


def run(
    out: Path,
    *,
    stop_at: int | None = None,
    resume: bool = False,
    batches: SmallBatches | Batches | None = None,
    said: list[str] | None = None,
    begun: Callable[[], None] | None = None,
    **options: Any,
) -> Fitted:
    """A run that asks to stop after `stop_at` steps; a new process would begin with the same."""
    steps = [0]
    return fit(
        small_trainable(),
        batches or SmallBatches(),
        small_config(out, **options),
        out=out,
        history=History(out),
        progress=lambda step, _: steps.append(step),
        stop=lambda: stop_at is not None and steps[-1] + 1 >= stop_at,
        resume=resume,
        begun=begun,
        say=[].append if said is None else said.append,
    )


def step_folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def steps_of(out: Path) -> list[int]:
    return Checkpoints(out / "checkpoints", 1).steps()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "ema": 0.0, "precision": "fp16"}])
def test_a_resumed_run_ends_with_the_same_numbers_bit_for_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    uninterrupted, stopped = tmp_path / "one", tmp_path / "two"
    run(uninterrupted, **options)
    assert run(stopped, stop_at=3, **options).stopped
    batches = SmallBatches()
    assert not run(stopped, resume=True, batches=batches, **options).stopped
    assert batches.asked[0] == 3 * options.get("accumulation", 1)
    assert same(state_of(stopped, 6), state_of(uninterrupted, 6))
    one, other = (read(out / "last.safetensors") for out in (uninterrupted, stopped))
    assert same(dict(one.tensors), dict(other.tensors))


class WideEncoders(ToyEncoders):
    """Embeddings as wide as the small net reads them."""

    def texts(self, *given: Any) -> tuple[Tensor, None]:
        context, _ = super().texts(*given)
        return context.repeat(1, 1, SMALL.context_dim // context.shape[-1]) / 1000, None


def picture_batches(out: Path, data: Path) -> Batches:
    """Batches with everything that is drawn or kept; those of `out` have a cache of their own."""
    return Batches(
        unhinted(open_source(data)),
        WideEncoders(),
        batch_size=2,
        resolution=64,
        seed=0,
        flip=True,
        crop="random",
        buckets=((64, 64), (48, 80), (80, 48)),
        cache=out / "cache",
        hints=inverted,
        workers=3,
    )


def inverted(target: Picture) -> Picture:
    return 255 - target


def test_a_resumed_run_of_pictures_ends_with_the_same_numbers_bit_for_bit(tmp_path: Path) -> None:
    data = write_prompt_json(tmp_path / "data", 9)
    write_picture(picture(3, 60, 100), data / "target" / "3.png")
    write_picture(picture(5, 60, 100), data / "target" / "5.png")
    for name, stops in (("one", (None,)), ("two", (3, None))):
        for stop_at in stops:
            batches = picture_batches(tmp_path / name, data)
            run(tmp_path / name, stop_at=stop_at, resume=stop_at is None, batches=batches)
    assert steps_of(tmp_path / "two") == [2, 3, 4, 6]
    assert same(state_of(tmp_path / "two", 6), state_of(tmp_path / "one", 6))
    losses = [History(tmp_path / name).series("loss") for name in ("one", "two")]
    assert losses[0] == losses[1]
    assert len({loss for _, loss in losses[0]}) == 6


def test_the_history_of_a_resumed_run_has_each_step_once(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, stop_at=3)
    History(tmp_path).note(4, loss=7.0)  # a step that the checkpoint doesn't have
    run(tmp_path, resume=True)
    assert History(tmp_path).series("loss") == History(whole).series("loss")
    assert [row["step"] for row in History(tmp_path).read()] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_resumed_to_its_end(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    before = state_of(tmp_path, 6)
    batches = SmallBatches()
    assert run(tmp_path, resume=True, batches=batches).step == 6
    assert not batches.asked
    assert same(state_of(tmp_path, 6), before)


def test_more_steps_can_be_asked_for_later(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    assert run(tmp_path, steps=4, resume=True).step == 4


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 8)])
def test_a_run_that_goes_on_with_another_accumulation_learns(
    tmp_path: Path, before: int, after: int
) -> None:
    run(tmp_path, stop_at=3, accumulation=before, save_every=1, ema=0.0)
    run(tmp_path, resume=True, accumulation=after, save_every=1, ema=0.0)
    states = [state_of(tmp_path, step) for step in (3, 4, 5)]
    assert not same(*states[:2])
    assert not same(*states[1:])


def test_weight_decay_can_change_on_the_way(tmp_path: Path) -> None:
    for decay in (0.01, 0.9):
        run(tmp_path / str(decay), stop_at=2)
        run(tmp_path / str(decay), resume=True, weight_decay=decay)
    assert not same(*(state_of(tmp_path / str(decay), 4) for decay in (0.01, 0.9)))


def test_a_run_that_failed_between_two_batches_of_a_step_goes_on_as_a_whole_one(
    tmp_path: Path,
) -> None:
    def spoil(index: int, batch: Batch) -> Batch:
        if index == 5:
            raise CldmError("There is no file a.png.")
        return batch

    with pytest.raises(CldmError, match="from step 2"):
        run(tmp_path / "one", batches=SmallBatches(spoil=spoil), accumulation=2, save_every=100)
    run(tmp_path / "one", resume=True, accumulation=2)
    run(tmp_path / "two", accumulation=2)
    assert same(state_of(tmp_path / "one", 6), state_of(tmp_path / "two", 6))


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    said: list[str] = []
    assert run(tmp_path, resume=True, steps=2, said=said).step == 2
    assert "There is no checkpoint" in said[0]


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(CldmError, match="holds a run already: resume it"):
        run(tmp_path)


def test_a_run_that_is_refused_has_not_begun(tmp_path: Path) -> None:
    begun: list[str] = []
    run(tmp_path, steps=2, begun=lambda: begun.append("anew"))
    refused = {"base": "other.safetensors", "begun": lambda: begun.append("refused")}
    with pytest.raises(CldmError, match="set it as it was"):
        run(tmp_path, resume=True, **refused)
    run(tmp_path, steps=3, resume=True, begun=lambda: begun.append("again"))
    assert begun == ["anew", "again"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sd_locked": False}, "sd_locked True \\(now False\\)"),
        ({"ema": 0.0}, "ema 0.9 \\(now 0.0\\)"),
        ({"base": "other.safetensors"}, "base tiny \\(now other.safetensors\\)"),
    ],
)
def test_what_shapes_the_net_cannot_change(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(CldmError, match=f"was started with {told}: set it as it was"):
        run(tmp_path, resume=True, **options)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({}, {"held_out": 8}, "held_out 16 \\(now 8\\)"),
        ({}, {"seed": 1}, "seed 0 \\(now 1\\)"),
        ({}, {"score": "mask_iou"}, "score None \\(now mask_iou\\)"),
        ({"annotator": "m:a"}, {"annotator": "m:b"}, "annotator m:a \\(now m:b\\)"),
        ({"evaluate_every": 0}, {}, "evaluate_every 0 \\(now 500\\)"),
        ({"held_out": 0}, {}, "held_out 0 \\(now 16\\)"),
    ],
)
def test_what_is_held_out_and_how_it_is_scored_cannot_change(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], told: str
) -> None:
    run(tmp_path, steps=2, **before)
    with pytest.raises(CldmError, match=f"was started with {told}: set it as it was"):
        run(tmp_path, resume=True, **now)
    assert run(tmp_path, steps=3, resume=True, **now, evaluate_every=0).step == 3


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("trained.safetensors", flip_a_byte),
        ("averages.safetensors", Path.unlink),
        ("optimizer.bin", cut_short),
        (MANIFEST, cut_short),
        (MANIFEST, Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_taken(
    whole: Path, tmp_path: Path, damage: Any, name: str
) -> None:
    run(tmp_path, stop_at=4)
    damage(step_folder(tmp_path, 4) / name)
    said: list[str] = []
    run(tmp_path, resume=True, said=said)
    assert "step-00000004 is damaged" in said[0]
    assert "goes on from step 2, the last that is whole" in said[0]
    assert same(state_of(tmp_path, 6), state_of(whole, 6))


def test_a_damaged_checkpoint_makes_no_whole_one_go(tmp_path: Path) -> None:
    run(tmp_path, stop_at=4)
    flip_a_byte(step_folder(tmp_path, 4) / "trained.safetensors")
    said: list[str] = []
    assert run(tmp_path, stop_at=1, resume=True, keep=1, said=said).step == 3
    aside = tmp_path / "checkpoints" / "damaged-step-00000004"
    assert f"The damaged one is now {aside}" in said[1]
    assert (aside / "net.safetensors").exists()
    assert steps_of(tmp_path) == [3]
    assert run(tmp_path, stop_at=1, resume=True, keep=1, said=said).step == 4


def test_where_notes_of_a_damaged_checkpoint_are_wanted_it_says_so(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    cut_short(step_folder(tmp_path, 2) / MANIFEST)
    with pytest.raises(DamagedCheckpoint, match=r"its checkpoint\.json can't be read"):
        Checkpoints(tmp_path / "checkpoints", 1).annotate(2, {"score": 1.0})


def test_where_all_checkpoints_are_damaged_it_says_so(tmp_path: Path) -> None:
    run(tmp_path, stop_at=4)
    for step in (2, 4):
        (step_folder(tmp_path, step) / "trained.safetensors").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"trained\.safetensors is missing.*no other one"):
        run(tmp_path, resume=True)


def test_weights_of_another_net_are_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(CldmError, match="holds weights of another net"):
        fit(
            small_trainable(sd_locked=False),
            SmallBatches(),
            small_config(tmp_path, steps=4),
            out=tmp_path,
            resume=True,
        )


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    for name in (".part-00000002", ".trash-step-00000001"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "half").touch()
    run(tmp_path, resume=True, steps=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def test_half_a_net_of_a_killed_process_is_swept_away(tmp_path: Path) -> None:
    for name in ("best.safetensors.77.part", "last_unet.safetensors.78.part", "mine.part"):
        (tmp_path / name).touch()
    run(tmp_path, steps=2)
    assert [path.name for path in tmp_path.glob("*.part")] == ["mine.part"]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, save_every=1, keep=2)
    assert steps_of(tmp_path) == [5, 6]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk without room: longer files can't be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1_000, 1_500_000])
def test_a_full_disk_is_a_sentence_and_leaves_the_last_checkpoint_whole(
    whole: Path, tmp_path: Path, size: int
) -> None:
    run(tmp_path, stop_at=2)
    before = state_of(tmp_path, 2)
    sentence = "(checkpoint of step 4|record .*) can't be written"
    with files_of_at_most(size), pytest.raises(CldmError, match=sentence):
        run(tmp_path, resume=True)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert same(state_of(tmp_path, 2), before)
    run(tmp_path, resume=True)
    assert same(state_of(tmp_path, 6), state_of(whole, 6))


def test_a_net_that_does_not_fit_on_the_disk_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, steps=2)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("controlnet_pack.cldm_core.training.session.save_net", full)
    with pytest.raises(CldmError, match=r"last\.safetensors \(No space left.*: make room"):
        run(tmp_path, steps=2, resume=True)
    with pytest.raises(CldmError, match=r"checkpoint of step 4 can't be written .*No space left"):
        run(tmp_path, resume=True)
    assert steps_of(tmp_path) == [2]


def test_notes_that_do_not_fit_on_the_disk_are_a_sentence(tmp_path: Path) -> None:
    run(tmp_path, steps=2)
    with files_of_at_most(10), pytest.raises(CldmError, match="step 2 can't be written"):
        Checkpoints(tmp_path / "checkpoints", 1).annotate(2, {"score": 1.0})
    assert Checkpoints(tmp_path / "checkpoints", 1).read(2).step == 2


def test_a_plot_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path: Path) -> None:
    reports = Reports(tmp_path)
    reports.note(1, loss=1.0)
    with files_of_at_most(1000), pytest.raises(CldmError, match=r"plot\.png can't be written \("):
        reports.plot()
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


def test_logs_that_do_not_fit_on_the_disk_are_a_sentence(tmp_path: Path) -> None:
    class Full:
        def note(self, step: int, **numbers: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        picture = close = note

    reports = Reports(tmp_path)
    reports.board = cast("TensorBoard", Full())
    with pytest.raises(CldmError, match=r"tensorboard can't be written \(No space left on device"):
        reports.note(1, loss=1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_stop(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    handlers = signal.getsignal(number)
    with StopOnSignals() as stop:
        fitted = fit(
            small_trainable(),
            SmallBatches(),
            small_config(tmp_path),
            out=tmp_path,
            progress=lambda step, _: os.kill(os.getpid(), number) if step == 2 else None,
            stop=stop,
        )
        assert stop.received == number
    assert signal.getsignal(number) == handlers
    assert (fitted.step, fitted.stopped) == (3, True)
    assert steps_of(tmp_path) == [2, 3]
    run(tmp_path, resume=True)
    assert same(state_of(tmp_path, 6), state_of(whole, 6))


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnet_pack.cldm_core.training.signals.IMPATIENT_AFTER", 0.0)
    with StopOnSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_loses_at_most_the_steps_since_its_last_checkpoint(tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "one", tmp_path / "two"
    run(uninterrupted, **LONG)
    command = ("-m", "tests.cldm_core.training_process", "kills", str(killed), "6")
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = [max(json.loads(line), default=0) for line in done.stdout.splitlines()]
    assert len(last) == 6
    assert last == sorted(last)
    assert last[-1] >= 3
    run(killed, resume=True, **LONG)
    assert same(state_of(killed, LONG["steps"]), state_of(uninterrupted, LONG["steps"]))
    assert History(killed).series("loss") == History(uninterrupted).series("loss")
