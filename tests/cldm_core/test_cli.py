"""The command line, end to end with the embedded model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.cldm_core import tiny
from controlnet_pack.cldm_core.pictures import read_picture, write_picture

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cldm_core", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", [(), ("demo",), ("sample",), ("inspect",)])
def test_help_reads_well(command: tuple[str, ...]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m cldm_core")
    assert "None" not in done.stdout


def test_demo_writes_four_pictures_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "demo.png"
    done = run("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    sheet = read_picture(out)
    assert sheet.shape[1] > 4 * 2 * tiny.SIZE
    assert list(out.parent.iterdir()) == [out]


def test_sample_with_a_hint_made_by_an_annotator(tmp_path: Path) -> None:
    out = tmp_path / "crab.png"
    done = run(
        "sample", "crab", out, "--controlnet", "embedded:canny", "--hint", tiny.EXAMPLE,
        "--annotator", "annotators:canny", "--steps", "2", "--count", "2", "--scheduler", "euler",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / f"crab_{i}.png") for i in range(2)]
    assert read_picture(tmp_path / "crab_1.png").shape == (tiny.SIZE, tiny.SIZE, 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("demo", "--picture", "nowhere.png"), "There is no picture nowhere.png"),
        (("demo", "--picture", "README.md"), "can't be read as a picture"),
        (("inspect", "README.md"), "can't be read as safetensors"),
        (("sample", "a", "b.png", "--hint", "c.png"), "add --controlnet FILE"),
        (("sample", "a", "b.png", "--controlnet", "embedded:canny"), "add --hint PICTURE"),
        (
            ("sample", "a", "b.png", "--controlnet", "embedded:pose", "--hint", "x"),
            "no part 'pose'",
        ),
        (("sample", "a", "b.png", "--checkpoint", "nowhere.ckpt"), "There is no file nowhere.ckpt"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_names_what_a_file_holds() -> None:
    done = run("inspect", tiny.weights("canny"), tiny.weights("unet"))
    assert done.returncode == 0, done.stderr
    net, base = done.stdout.splitlines()
    assert net.endswith("embedded model ControlNet, cldm keys, hint 3 channels, fp16, 3.0 M")
    assert "embedded model base model" in base


@pytest.mark.parametrize("name", ["ü.png", "picture.jpg", "picture.webp"])
def test_pictures_survive_their_files(tmp_path: Path, name: str) -> None:
    picture = np.full((5, 7, 3), (200, 100, 50), np.uint8)
    write_picture(picture, tmp_path / name)
    assert np.abs(read_picture(tmp_path / name).astype(int) - picture).max() <= 6


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    import cv2

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (0, 0, 255, 255)
    cv2.imwrite(str(tmp_path / "cut.png"), rgba)
    picture = read_picture(tmp_path / "cut.png")
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[3, 3].tolist() == [255, 255, 255]
    assert read_picture(tmp_path / "cut.png", alpha=True).shape == (4, 4, 4)
