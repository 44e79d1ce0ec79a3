"""`python -m annotators NAME folder/ folder/`: what stops it at once, what it leaves alone."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, Annotator, annotate, files
from controlnet_pack.annotators.__main__ import MOST_TOLD, main
from controlnet_pack.annotators.errors import Unavailable

from .cli_cases import refused
from .pictures import read, write
from .seeded import SEEDED

PICTURES = 3


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed in range(PICTURES):
        write(tmp_path / "pictures" / f"{seed}.png", seed)
    return tmp_path / "pictures"


@pytest.fixture
def out(tmp_path) -> Iterator[Path]:
    """Where hints go; there are none after the test."""
    yield tmp_path / "out"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("canny", "--low_threshold", 300), "low_threshold is 300, but it has to be from 0 to 255"),
        (("canny", "--resolution", -1), "resolution is -1, but it has to be from 0 to 16384"),
        (("canny", "--format", "xyz"), "/0.xyz has no ending of a picture format; use .png"),
        (("inpaint",), "inpaint needs a mask: white where it has to act"),
    ],
)
def test_what_no_picture_can_help_is_said_once(capfd, folder, out, options, sentence):
    name, *rest = options
    assert sentence in refused(capfd, name, folder, out, *rest)


def test_a_mask_that_is_not_taken_is_said_once(capfd, folder, out):
    said = refused(capfd, "canny", folder, out, "--mask", folder / "0.png")
    assert said == "canny: canny takes no mask: leave it out.\n"


def test_hints_of_floats_that_no_picture_can_hold_are_said_once(capfd, folder, out):
    cv2.imwrite(str(folder / "3.bmp"), np.zeros((9, 9, 3), np.uint8))
    said = refused(capfd, "inpaint", folder, out, "--mask", folder / "0.png")
    assert said.endswith("which a .png can't hold; use .npy.\n")


def test_weights_that_are_missing_are_said_once(capfd, folder, out, no_network, monkeypatch):
    monkeypatch.setattr("controlnet_pack.annotators.downloads.into", offline)
    assert "ControlNetHED.pth (29 MB) isn't here" in refused(capfd, "hed", folder, out)


def test_a_device_that_is_not_here_is_said_once(capfd, folder, out, give, monkeypatch):
    SEEDED["hed"](give, monkeypatch)
    said = refused(capfd, "hed", folder, out, "--device", "gpu")
    assert said.startswith("hed: ")
    assert "gpu" in said


def offline(*_: object) -> Path:
    raise ConnectionError("offline")


def test_what_turns_up_later_and_no_picture_can_help_ends_the_run(
    capfd, folder, tmp_path, monkeypatch
):
    seen = []

    def run(image):
        seen.append(image)
        if len(seen) > 2:  # the check, and a first picture
            raise Unavailable("face.pth isn't here.")
        return image

    monkeypatch.setitem(ANNOTATORS, "late", Annotator("late", "Late", "Lacks a file later.", run))
    assert refused(capfd, "late", folder, tmp_path / "out") == "late: face.pth isn't here.\n"
    assert len(seen) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


def test_a_format_that_can_not_be_written_stops_no_other(capfd, folder, tmp_path, monkeypatch):
    (folder / "3.xyz").write_bytes((folder / "0.png").read_bytes())
    monkeypatch.setattr(files, "PICTURES", {".png", ".xyz"})
    assert main(["blur", str(folder), str(tmp_path / "out")]) == 1
    (said,) = capfd.readouterr().err.splitlines()[1:]
    assert "3.xyz has no ending of a picture format" in said
    assert len([*(tmp_path / "out").iterdir()]) == PICTURES


def test_a_target_above_the_pictures(folder, tmp_path):
    assert main(["canny", str(folder), str(tmp_path)]) == 0
    hints = sorted(path.name for path in tmp_path.glob("*.png"))
    assert hints == [f"{number}.png" for number in range(PICTURES)]
    assert np.array_equal(read(tmp_path / "0.png"), annotate("canny", read(folder / "0.png")))


def test_no_picture_becomes_the_hint_of_another(capfd, folder, tmp_path):
    """With a target above the pictures, a folder in them may have their own folder's name."""
    inner = write(folder / "pictures" / "0.png", 7)
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert main(["canny", str(folder), str(tmp_path)]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[1:] == [
        f"{folder / '0.png'} is a picture itself: no place for the hint of {inner}."
    ]
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_a_picture_that_opencv_refuses_stops_no_other(capfd, folder, tmp_path, monkeypatch):
    decode = cv2.imdecode

    def limited(data, flags):
        pixels = decode(data, flags)
        if pixels is not None and len(pixels) == 9:
            raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")
        return pixels

    monkeypatch.setattr(cv2, "imdecode", limited)
    large = write(folder / "large.png", 9, 9, 9)
    assert main(["canny", str(folder), str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1].startswith(f"{large} is refused by OpenCV: it has more than 2^30 pixels")
    assert len([*(tmp_path / "out").iterdir()]) == PICTURES


@pytest.mark.parametrize(("count", "more"), [(MOST_TOLD, []), (MOST_TOLD + 5, ["and 5 more"])])
def test_of_many_pictures_that_fail_some_are_told(capfd, folder, tmp_path, count, more):
    for number in range(count):
        (folder / f"x{number:03}.png").touch()
    assert main(["canny", str(folder), str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[0] == f"canny: {count} of {count + PICTURES} pictures failed:"
    assert said[MOST_TOLD].startswith(f"{folder}/x{MOST_TOLD - 1:03}.png is no picture")
    assert said[MOST_TOLD + 1 :] == more


def test_two_pictures_of_one_hint(capfd, folder, tmp_path):
    source, out = folder / "0.png", tmp_path / "out"
    (folder / "0.webp").write_bytes(source.read_bytes())
    assert main(["canny", str(folder), str(out), "--format", "png"]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[1:] == [
        f"{out / '0.png'} is the hint of {source} already: no place for the hint of "
        f"{folder / '0.webp'}."
    ]


def test_a_file_in_the_place_of_the_folder(capfd, folder, tmp_path):
    hint = write(tmp_path / "hint.png", 0)
    said = refused(capfd, "canny", folder, hint)
    assert said == f"canny: {hint} is a file: name a folder for the hints of a folder.\n"
