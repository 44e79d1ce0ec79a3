"""Two processes train as one does with twice the batch."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from controlnet_pack.cldm_core.training.checkpoints import Checkpoints
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.loop import fit

from .training_process import VARIANTS
from .training_runs import SmallBatches, small_config, small_trainable, state_of

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120
"""Seconds: processes that wait for each other in vain would wait for hours."""
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "-m",
)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes wrote what they trained."""
    out = tmp_path_factory.mktemp("together")
    command = [*TORCHRUN, "tests.cldm_core.training_process", "together", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(("name", "options", "settings"), VARIANTS)
def test_two_processes_equal_one_with_twice_the_batch(
    together: Path, tmp_path: Path, name: str, options: dict, settings: dict
) -> None:
    config = small_config(tmp_path, accumulation=2, steps=3, save_every=1, **settings)
    trainable = small_trainable(**options)
    fit(trainable, SmallBatches(4), config, out=tmp_path, history=History(tmp_path))
    one, two = (state_of(out, 1) for out in (tmp_path, together / name))
    assert one.keys() == two.keys()
    for key, value in one.items():
        # AdamW's first moment after one step is a tenth of the gradient, which is rounding alone
        # where a norm follows a bias.
        if key.endswith("/exp_avg"):
            assert (two[key] - value).norm() <= 1e-5 * value.norm() + 1e-9, key
    weights = [key for key in one if key.startswith("trained")]
    ours, theirs = (torch.cat([state[key].flatten() for key in weights]) for state in (one, two))
    assert (theirs - ours).norm() <= 1e-5 * ours.norm()
    losses = (dict(History(out).series("loss")) for out in (tmp_path, together / name))
    expected, found = ([values[step] for step in (1, 2)] for values in losses)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_wish_of_one_stops_both(together: Path) -> None:
    for name, *_ in VARIANTS:
        steps = sorted(path.name for path in (together / name / "checkpoints").iterdir())
        assert steps == ["step-00000001", "step-00000002"]


def test_two_processes_go_on_where_they_evaluated(together: Path) -> None:
    history = History(together / "evaluated")
    assert [step for step, _ in history.mappings("zero_norms")] == [0, 2, 4, 6]
    assert len([row for row in history.read() if "zero_norms" in row]) == 4
    assert (together / "evaluated" / "checkpoints" / "step-00000006").exists()


def test_one_bad_pair_stops_both_and_is_named_by_both(together: Path) -> None:
    said = said_by_both(together, "bad")
    assert "step 2 is no finite number, with the pairs pair 6, pair 7" in said
    assert saved_steps(together / "bad") == [1]


def said_by_both(together: Path, name: str) -> str:
    """The error that a run ended in, the same one in both processes."""
    first, second = ((together / f"{name}-{rank}").read_text() for rank in range(2))
    assert first == second
    return first


def saved_steps(out: Path) -> list[int]:
    return Checkpoints(out / "checkpoints", 1).steps()


def test_a_batch_that_one_cannot_read_stops_both_and_the_run_goes_on(together: Path) -> None:
    said = said_by_both(together, "vanished")
    assert said.startswith("There is no file a.png. The run stops at step 2; resume it")
    assert saved_steps(together / "vanished") == [2, 3]


def test_an_evaluation_that_fails_stops_both(together: Path) -> None:
    said = said_by_both(together, "unsampled")
    assert said.startswith("The sample can't be scored. The run stops at step 2; resume it")
    assert saved_steps(together / "unsampled") == [2]


def test_a_record_that_cannot_be_written_stops_both(together: Path) -> None:
    assert said_by_both(together, "unnoted") == "The record can't be written."


def test_a_checkpoint_that_cannot_be_written_stops_both(together: Path) -> None:
    assert "The checkpoint of step 2 can't be written" in said_by_both(together, "full")


def test_processes_that_see_folders_of_their_own_are_refused(together: Path) -> None:
    for rank in range(2):
        said = (together / f"apart-{rank}").read_text()
        assert "find checkpoints of different steps" in said
        assert "(2, none): choose a folder that all machines see." in said


def test_a_signal_to_torchrun_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*TORCHRUN, "cldm_core", "train", "--out", str(out)]
    options = (
        *("--data", "circles", "--circles", "6", "--resolution", "64", "--batch-size", "1"),
        *("--held-out", "0", "--save-every", "1000", "--log-every", "1", "--device", "cpu"),
    )
    process = subprocess.Popen(
        [*command, *options, "--steps", "1000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "history.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate()
    stopped = re.findall(r"Stopped after step (\d+) of 1000", said)
    assert len(stopped) == 1, wrong
    step = int(stopped[0])
    again = [*command, "--resume", "--steps", str(step + 1)]
    done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Going on from step {step}" in done.stdout
    assert History(out).series("loss")[-1][0] == step + 1
