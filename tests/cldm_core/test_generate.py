"""`python -m cldm_core generate`: pairs that trainers read, and runs that go on where they were."""

import json
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.pictures import read_picture, write_picture
from controlnet_pack.cldm_core.training.sources import open_source

CAPTIONS = ("hut", "crab", "")


def hints(folder: Path, count: int = 2) -> Path:
    """Drawings of squares, with captions."""
    for number in range(count):
        picture = np.zeros((96, 128, 3), np.uint8)
        picture[20 : 40 + 10 * number, 30:90] = 255
        write_picture(picture, folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number], encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path):
    """Runs the verb on two hints, small; gives the exit code."""
    (tmp_path / "hints").mkdir()
    hints(tmp_path / "hints")

    def call(*more: str) -> int:
        places = (str(tmp_path / "hints"), str(tmp_path / "pairs"))
        return main(["generate", *places, "--size", "64", "--steps", "2", *more])

    return call


def stored(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_pairs_are_pictures_with_their_hints_and_prompts(run, tmp_path: Path) -> None:
    assert run() == 0
    pairs = open_source(tmp_path / "pairs")
    assert [pairs[index].prompt for index in range(len(pairs))] == ["hut", "crab"]
    for index in range(2):
        target, hint = pairs[index].read_target(), pairs[index].read_hint()
        assert target.shape == hint.shape == (64, 64, 3)
        assert target.std() > 1
        assert set(np.unique(hint)) >= {0, 255}
    lines = (tmp_path / "pairs" / "prompt.json").read_text(encoding="utf-8").splitlines()
    assert {"source", "target", "prompt"} <= json.loads(lines[0]).keys()
    assert (tmp_path / "pairs" / "metadata.jsonl").exists()


def test_copies_differ_and_have_one_hint(run, tmp_path: Path) -> None:
    assert run("--copies", "2", "--prompt", "church") == 0
    pairs = open_source(tmp_path / "pairs")
    assert [pairs[index].prompt for index in range(len(pairs))] == ["church"] * 4
    assert np.array_equal(pairs[0].read_hint(), pairs[1].read_hint())
    assert not np.array_equal(pairs[0].read_target(), pairs[1].read_target())


def test_a_stopped_run_goes_on_with_the_same_pairs(run, tmp_path: Path) -> None:
    assert run() == 0
    whole = stored(tmp_path / "pairs")
    for table in ("prompt.json", "metadata.jsonl"):
        path = tmp_path / "pairs" / table
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert run() == 0
    assert stored(tmp_path / "pairs") == whole


def test_other_settings_are_refused(run, tmp_path: Path, capsys) -> None:
    assert run() == 0
    before = stored(tmp_path / "pairs")
    assert run("--seed", "5") == 2
    assert "pairs" in capsys.readouterr().err
    assert stored(tmp_path / "pairs") == before


def test_an_annotator_makes_hints_of_pictures(run, tmp_path: Path) -> None:
    assert run("--annotator", "controlnet_pack.annotators:invert") == 0
    shown = read_picture(tmp_path / "hints" / "0.png")
    hint = open_source(tmp_path / "pairs")[0].read_hint()
    assert shown.mean() < 128 < hint.mean()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--copies", "0"], "copies is 0"),
        (["--device", "cuda:77"], "no device"),
        (["--controlnet", "nothing.safetensors"], "nothing.safetensors"),
        (["--size", "60"], "multiples of 8"),
    ],
)
def test_bad_settings_are_sentences(run, more: list[str], told: str, capsys) -> None:
    assert run(*more) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_hints_stay_as_they_are(tmp_path: Path, capsys) -> None:
    before = stored(hints(tmp_path))
    assert main(["generate", str(tmp_path), str(tmp_path / "new" / "..")]) == 2
    assert "is the folder of the hints: write to another one" in capsys.readouterr().err
    assert stored(tmp_path) == before
