"""The record of a run on disk."""

import errno
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.training.history import BLOCK, History

ROOT = Path(__file__).resolve().parents[2]


def lines(history: History) -> list[bytes]:
    return history.path.read_bytes().splitlines()


def test_what_was_noted_is_read(tmp_path) -> None:
    history = History(tmp_path / "run")
    history.note(10, loss=0.5, lr=1e-4)
    history.note(20, loss=0.25, score="edge_f1", per_picture=[0.5, 1], zero_norms={"z0": 0.1})
    assert history.read() == [
        {"step": 10, "loss": 0.5, "lr": 1e-4},
        {
            "step": 20,
            "loss": 0.25,
            "score": "edge_f1",
            "per_picture": [0.5, 1],
            "zero_norms": {"z0": 0.1},
        },
    ]


def test_a_run_without_notes_is_empty(tmp_path) -> None:
    history = History(tmp_path / "run")
    assert history.read() == history.series("loss") == []
    history.rewind(0)
    assert not history.path.exists()


def test_numbers_of_other_libraries_become_plain_ones(tmp_path) -> None:
    history = History(tmp_path)
    history.note(np.int64(3), loss=torch.tensor(0.5), each=np.array([0.25, 1]), one=np.float32(2))
    assert history.read() == [{"step": 3, "loss": 0.5, "each": [0.25, 1.0], "one": 2.0}]


def test_numbers_that_are_not_finite_are_valid_json_and_come_back_as_nan(tmp_path) -> None:
    history = History(tmp_path)
    history.note(1, loss=math.inf)
    assert json.loads(lines(history)[0]) == {"step": 1, "loss": None}
    assert math.isnan(history.read()[0]["loss"])


def test_series_are_by_step_and_the_last_note_of_a_step_counts(tmp_path) -> None:
    history = History(tmp_path)
    for step, loss in ((20, 2.0), (10, 1.0), (20, 3.0)):
        history.note(step, loss=loss)
    history.note(15, adherence=0.5)
    assert history.series("loss") == [(10, 1.0), (20, 3.0)]
    assert history.series("adherence") == [(15, 0.5)]


@pytest.mark.parametrize("keep", range(1, 22))
def test_an_unfinished_last_line_is_dropped_wherever_it_ends(tmp_path, keep: int) -> None:
    history = History(tmp_path)
    history.note(1, loss=0.5)
    whole = history.path.read_bytes()
    history.path.write_bytes(whole + b'{"step": 2, "loss": 0.25}'[:keep])
    assert history.read() == [{"step": 1, "loss": 0.5}]
    history.note(3, loss=0.125)
    assert [row["step"] for row in history.read()] == [1, 3]
    assert history.path.read_bytes() == whole + b'{"step": 3, "loss": 0.125}\n'


def test_a_long_unfinished_line_is_dropped(tmp_path) -> None:
    history = History(tmp_path)
    history.note(1, loss=0.5)
    with open(history.path, "ab") as handle:
        handle.write(b"x" * (3 * BLOCK + 7))
    history.note(2, loss=0.25)
    assert history.series("loss") == [(1, 0.5), (2, 0.25)]


def test_a_file_of_one_unfinished_line_starts_anew(tmp_path) -> None:
    history = History(tmp_path)
    history.path.write_bytes(b'{"step": 1, "lo')
    history.note(2, loss=0.25)
    assert history.read() == [{"step": 2, "loss": 0.25}]


def test_a_damaged_line_is_left_out_and_named(tmp_path, caplog) -> None:
    history = History(tmp_path)
    history.note(1, loss=0.5)
    with open(history.path, "ab") as handle:
        handle.write(b"\x00\x00\x00\n[1]\n{}\n")
    history.note(2, loss=0.25)
    with caplog.at_level(logging.WARNING, "cldm_core"):
        assert history.series("loss") == [(1, 0.5), (2, 0.25)]
    assert "Line 2 of" in caplog.text
    assert caplog.text.count("is damaged") == 3


def test_rewinding_drops_what_came_later(tmp_path) -> None:
    history = History(tmp_path)
    for step in (10, 20, 30):
        history.note(step, loss=step)
    history.rewind(20)
    assert history.series("loss") == [(10, 10.0), (20, 20.0)]
    assert [one.name for one in tmp_path.iterdir()] == [history.path.name]


def test_rewinding_keeps_the_lines_as_they_were(tmp_path) -> None:
    history = History(tmp_path)
    history.note(1, loss=math.nan)
    before = history.path.read_bytes()
    history.note(2, loss=1.0)
    history.rewind(1)
    assert history.path.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch) -> None:
    history = History(tmp_path)
    history.note(1, loss=0.5)
    before = history.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CldmError, match=r"can't be written \(No space left on device\): what it"):
        history.note(2, loss=0.25)
    assert history.path.read_bytes() == before
    with pytest.raises(CldmError, match="No space left"):
        history.rewind(0)
    assert history.path.read_bytes() == before
    monkeypatch.undo()
    history.note(2, loss=0.25)
    assert history.series("loss") == [(1, 0.5), (2, 0.25)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_is_told(tmp_path) -> None:
    history = History(tmp_path)
    history.path.symlink_to("/dev/full")
    with pytest.raises(CldmError, match="No space left on device"):
        history.note(1, loss=0.5)


def test_every_note_is_on_disk_when_a_process_is_killed(tmp_path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cldm_core.training.history import History\n"
        "history, step = History(sys.argv[2]), 0\n"
        "while True:\n"
        "    step += 1\n"
        "    history.note(step, loss=1 / step, per_picture=[0.5] * 500)\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    last = int(([*map(str, told), *rest.split("\n")[:-1]])[-1])
    steps = [row["step"] for row in History(tmp_path).read()]
    assert steps == list(range(1, len(steps) + 1))
    assert last <= len(steps) <= last + 1
