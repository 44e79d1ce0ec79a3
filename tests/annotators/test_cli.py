"""`python -m annotators`, from file to file."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, canny, mask
from controlnet_pack.annotators.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rgba() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (24, 31, 4), dtype=np.uint8)


@pytest.fixture
def png(tmp_path, rgba) -> Path:
    path = tmp_path / "in.png"
    cv2.imwrite(str(path), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    return path


def read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def refused(capfd, *arguments: object) -> str:
    """The one sentence on stderr of a command that fails."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capfd.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    return said.err


def test_as_a_user_runs_it(png, rgba, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, "-m", "annotators", "canny", png, out, "--low_threshold", "50"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert np.array_equal(read(out), canny(rgba, low_threshold=50))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_alpha_reaches_the_annotator(png, rgba, tmp_path):
    assert main(["mask", str(png), str(tmp_path / "out.png")]) == 0
    assert np.array_equal(read(tmp_path / "out.png"), mask(rgba))


def test_grey_with_16_bits(tmp_path):
    grey = np.random.default_rng(4).integers(0, 256, (16, 16), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "in.png"), grey.astype(np.uint16) * 257)
    assert main(["canny", str(tmp_path / "in.png"), str(tmp_path / "out.png")]) == 0
    assert np.array_equal(read(tmp_path / "out.png"), canny(grey))


def test_help_names_everything(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capfd.readouterr().out
    for annotator in ANNOTATORS.values():
        assert annotator.name in shown
        assert annotator.title in shown


@pytest.mark.parametrize("name", ANNOTATORS)
def test_help_of_an_annotator_names_its_parameters(capfd, name):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    shown = capfd.readouterr().out
    for setting in ANNOTATORS[name].settings:
        assert re.search(rf"--{setting}\b", shown)


def test_missing_file(capfd, tmp_path):
    source = tmp_path / "none.png"
    said = refused(capfd, "canny", source, tmp_path / "out.png")
    assert said == f"canny: {source}: No such file or directory\n"


@pytest.mark.parametrize("length", [0, 20, 200])
def test_damaged_file(capfd, png, tmp_path, length):
    png.write_bytes(png.read_bytes()[:length])
    said = refused(capfd, "canny", png, tmp_path / "out.png")
    assert said == f"canny: {png} is no picture that OpenCV can read, or it is damaged.\n"


def test_parameter_out_of_range(capfd, png, tmp_path):
    out = tmp_path / "out.png"
    said = refused(capfd, "canny", png, out, "--low_threshold", 300)
    assert said == "canny: low_threshold is 300, but it has to be from 0 to 255.\n"
    assert not out.exists()


def test_ending_of_no_picture(capfd, png, tmp_path):
    out = tmp_path / "out.txt"
    said = refused(capfd, "canny", png, out)
    assert said == f"canny: {out} has no ending of a picture format; use .png, for example.\n"


def test_folder_that_does_not_exist(capfd, png, tmp_path):
    said = refused(capfd, "canny", png, tmp_path / "none" / "out.png")
    assert said == f"canny: {tmp_path / 'none'} is not a folder; create it first.\n"


def test_picture_too_large_for_the_format(capfd, tmp_path):
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((1, 70_000, 3), np.uint8))
    said = refused(capfd, "canny", tmp_path / "in.png", tmp_path / "out.jpg")
    assert said == "canny: A .jpg can't hold 70000 x 1 pixels; use .png.\n"
    assert not (tmp_path / "out.jpg").exists()


def test_failed_write_leaves_the_old_file(capfd, png, tmp_path, monkeypatch):
    out = tmp_path / "out.png"
    out.write_bytes(b"old")

    def full_disk(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert "No space left on device" in refused(capfd, "canny", png, out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_list_names_every_annotator(capfd):
    assert main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*ANNOTATORS]


def test_folder(capfd, png, tmp_path, rgba):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place in ("a/1.png", "a/b/2.png"):
        (tmp_path / place).write_bytes(png.read_bytes())
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    assert main(["canny", str(tmp_path / "a"), str(tmp_path / "out")]) == 0
    assert np.array_equal(read(tmp_path / "out" / "b" / "2.png"), canny(rgba))
    assert main(["canny", str(tmp_path / "a"), str(tmp_path / "jpg"), "--format", "jpg"]) == 0
    names = sorted(path.name for path in (tmp_path / "jpg").rglob("*.*"))
    assert names == ["1.jpg", "2.jpg"]


def test_folder_with_a_damaged_picture(capfd, png, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png.read_bytes()[:50])
    (tmp_path / "a" / "2.png").write_bytes(png.read_bytes())
    assert main(["canny", str(tmp_path / "a"), str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert said.startswith("canny: 1 of 2 pictures failed:\n")
    assert "1.png is no picture" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2.png"]
