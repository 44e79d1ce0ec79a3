"""`python -m annotators`, from file to file."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, Annotator, annotate, canny, inpaint, mask
from controlnet_pack.annotators.__main__ import main

from .cli_cases import refused, terminal
from .pictures import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rgba() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (24, 31, 4), dtype=np.uint8)


@pytest.fixture
def png(tmp_path, rgba) -> Path:
    path = tmp_path / "in.png"
    cv2.imwrite(str(path), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    return path


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
    for setting, about in ANNOTATORS[name].settings.items():
        for other in (setting, *about.also):
            assert re.search(rf"--{other}\b", shown)


def test_a_parameter_by_the_name_of_another_package(capfd, png, tmp_path, rgba):
    out = tmp_path / "out.png"
    assert main(["binary", str(png), str(out), "--bin_threshold", "50"]) == 0
    assert np.array_equal(read(out), annotate("binary", rgba, bin_threshold=50))
    said = refused(capfd, "binary", png, out, "--bin_threshold", 50, "--threshold", 60)
    assert said == (
        "binary: bin_threshold and threshold are one parameter of binary: leave one of them out.\n"
    )


def test_missing_file(capfd, tmp_path):
    source = tmp_path / "none.png"
    said = refused(capfd, "canny", source, tmp_path / "out.png")
    assert said == f"canny: {source}: No such file or directory\n"


def test_missing_file_is_told_before_the_target_is_judged(capfd, tmp_path):
    said = refused(capfd, "canny", tmp_path / "none", tmp_path / "out")
    assert said == f"canny: {tmp_path / 'none'}: No such file or directory\n"


def test_a_folder_in_the_place_of_the_hint(capfd, png, tmp_path):
    video(tmp_path / "in.avi")
    for source in (png, tmp_path / "in.avi"):
        said = refused(capfd, "canny", source, tmp_path)
        assert said == f"canny: {tmp_path} is a folder: name the file that is to be written.\n"


def test_a_format_for_one_picture(capfd, png, tmp_path):
    said = refused(capfd, "canny", png, tmp_path / "out.jpg", "--format", "png")
    assert said == "canny: --format is for folders: the ending of OUT gives it here.\n"


@pytest.mark.parametrize("length", [0, 20, 200])
def test_damaged_file(capfd, png, tmp_path, length):
    png.write_bytes(png.read_bytes()[:length])
    said = refused(capfd, "canny", png, tmp_path / "out.png")
    assert said == f"canny: {png} is no picture that OpenCV can read, or it is damaged.\n"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_file_that_breaks_off(capfd, tmp_path, ending, part):
    source = tmp_path / f"in.{ending}"
    smooth = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint8)
    _, data = cv2.imencode(source.suffix, smooth)
    source.write_bytes(data.tobytes()[: int(len(data) * part)])
    said = refused(capfd, "canny", source, tmp_path / "out.png")
    assert said == f"canny: {source} is no picture that OpenCV can read, or it is damaged.\n"


def test_parameter_out_of_range(capfd, png, tmp_path):
    out = tmp_path / "out.png"
    said = refused(capfd, "canny", png, out, "--low_threshold", 300)
    assert said == "canny: low_threshold is 300, but it has to be from 0 to 255.\n"
    assert not out.exists()


def test_ending_of_no_picture(capfd, png, tmp_path, monkeypatch):
    out = tmp_path / "out.txt"
    monkeypatch.setattr(Annotator, "__call__", lambda *_, **__: pytest.fail("in vain"))
    said = refused(capfd, "canny", png, out)
    assert said == f"canny: {out} has no ending of a picture format; use .png, for example.\n"


def test_folder_that_does_not_exist(capfd, png, tmp_path):
    said = refused(capfd, "canny", png, tmp_path / "none" / "out.png")
    assert said == f"canny: {tmp_path / 'none'} is not a folder; create it first.\n"


def test_picture_too_large_for_the_format(capfd, tmp_path):
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((1, 70_000, 3), np.uint8))
    said = refused(capfd, "canny", tmp_path / "in.png", tmp_path / "out.jpg")
    assert said == "canny: A .jpg can't hold 70000 x 1 pixels in colour; use .png.\n"
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


def test_list_as_an_option(capfd):
    with pytest.raises(SystemExit, match="0"):
        main(["--list"])
    asked = capfd.readouterr().out
    assert main(["list"]) == 0
    assert asked == capfd.readouterr().out


def test_mask(png, rgba, tmp_path):
    mask_of = np.tri(24, 31, dtype=np.uint8) * 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask_of)
    out = tmp_path / "out.npy"
    assert main(["inpaint", str(png), str(out), "--mask", str(tmp_path / "mask.png")]) == 0
    hint = np.load(out)
    assert hint.dtype == np.float32
    assert hint.min() == -1
    assert np.array_equal(hint, inpaint(rgba, mask=mask_of))


def test_mask_that_is_missing_or_not_taken(capfd, png, tmp_path):
    out = tmp_path / "out.npy"
    assert refused(capfd, "inpaint", png, out) == (
        "inpaint: inpaint needs a mask: white where it has to act.\n"
    )
    assert refused(capfd, "canny", png, out, "--mask", png) == (
        "canny: canny takes no mask: leave it out.\n"
    )


def test_hint_of_floats_does_not_become_a_png(capfd, png, tmp_path):
    out = tmp_path / "out.png"
    said = refused(capfd, "inpaint", png, out, "--mask", png)
    assert said == "inpaint: This hint has values down to -1, which a .png can't hold; use .npy.\n"
    assert not out.exists()


def test_a_hint_that_is_there_is_replaced(png, rgba, tmp_path):
    out = tmp_path / "out.png"
    for threshold in ("50", "90"):
        assert main(["canny", str(png), str(out), "--low_threshold", threshold]) == 0
        assert np.array_equal(read(out), canny(rgba, low_threshold=int(threshold)))


def test_a_picture_is_not_replaced_by_its_hint(capfd, png, tmp_path):
    before = png.read_bytes()
    said = refused(capfd, "canny", png, tmp_path / "." / "in.png")
    assert said == f"canny: {png} is the picture itself: name another place for the hint.\n"
    said = refused(capfd, "canny", tmp_path, tmp_path)
    assert said == f"canny: {tmp_path} has the pictures themselves: name another folder.\n"
    assert png.read_bytes() == before


def test_hints_among_the_pictures_get_no_hints(png, tmp_path):
    command = ["canny", str(tmp_path), str(tmp_path / "hints")]
    assert main(command) == main(command) == 0
    assert [path.name for path in (tmp_path / "hints").rglob("*")] == ["in.png"]


def test_folder_with_what_is_no_picture_but_called_so(capfd, png, tmp_path, rgba):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("text")
    write_strip(tmp_path / "strip.png")
    (tmp_path / "folder.png").mkdir()
    out = tmp_path / "out"
    assert main(["canny", str(tmp_path), str(out), "--resolution", "300"]) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "canny: 3 of 4 pictures failed:"
    assert [line.partition(" ")[0].rpartition("/")[2] for line in said[1:]] == [
        *("empty.jpg", "strip.png:", "text.png")
    ]
    assert [path.name for path in out.iterdir()] == ["in.png"]


def write_strip(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((1, 4096, 3), np.uint8))


def test_folder_without_pictures(capfd, tmp_path):
    (tmp_path / "in.txt").touch()
    said = refused(capfd, "canny", tmp_path, tmp_path / "out")
    assert said == f"canny: There is no picture in {tmp_path}.\n"


def video(path: Path, frames: int = 5) -> list[np.ndarray]:
    """A square that goes to the right, 10 frames a second; gives the frames as they are read."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        frame = np.full((48, 64, 3), (200, 120, 40), np.uint8)
        frame[16:32, 8 * number : 8 * number + 16] = (20, 60, 220)
        writer.write(frame)
    writer.release()
    return frames_of(path)


def frames_of(path: Path) -> list[np.ndarray]:
    reader = cv2.VideoCapture(str(path))
    frames = []
    while (found := reader.read())[0]:
        frames.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
    reader.release()
    return frames


@pytest.mark.parametrize("ending", ["avi", "mp4", "webm"])
def test_video(tmp_path, ending):
    frames = video(tmp_path / "in.avi")
    out = tmp_path / f"out.{ending}"
    assert main(["invert", str(tmp_path / "in.avi"), str(out)]) == 0
    found = frames_of(out)
    assert len(found) == len(frames) == 5
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == 10
    for frame, hint in zip(frames, found, strict=True):
        # Codecs lose some.
        assert np.abs(hint.astype(int) - annotate("invert", frame)).mean() < 6
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.avi", out.name])


def test_video_at_a_resolution(tmp_path):
    video(tmp_path / "in.avi")
    out = tmp_path / "out.avi"
    assert main(["invert", str(tmp_path / "in.avi"), str(out), "--resolution", "24"]) == 0
    assert {frame.shape for frame in frames_of(out)} == {(24, 32, 3)}


def test_hints_of_floats_become_no_video(capfd, tmp_path):
    video(tmp_path / "in.avi")
    cv2.imwrite(str(tmp_path / "mask.png"), np.full((48, 64), 255, np.uint8))
    out = tmp_path / "out.avi"
    said = refused(capfd, "inpaint", tmp_path / "in.avi", out, "--mask", tmp_path / "mask.png")
    assert said == "inpaint: This hint has values down to -1, which a .avi can't hold; use .npy.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi", "mask.png"]


def test_frames_of_a_video_are_batches(monkeypatch, tmp_path):
    seen = []

    def run(images):
        seen.append(len(images))
        return 255 - images

    record = Annotator("batches", "Batches", "Inverts.", run, batched=True)
    monkeypatch.setitem(ANNOTATORS, "batches", record)
    frames = video(tmp_path / "in.avi", frames=11)
    assert main(["batches", str(tmp_path / "in.avi"), str(tmp_path / "out.avi")]) == 0
    assert seen == [8, 3]
    found = frames_of(tmp_path / "out.avi")
    assert len(found) == 11
    assert np.abs(found[10].astype(int) - (255 - frames[10])).mean() < 6


def test_what_is_no_video(tmp_path):
    (tmp_path / "in.mp4").write_text("text")
    # A new process, since FFmpeg asks once how much it may say.
    command = [sys.executable, "-m", "annotators", "canny", tmp_path / "in.mp4"]
    run = subprocess.run([*command, tmp_path / "out.mp4"], cwd=ROOT, capture_output=True, text=True)
    said = f"canny: {tmp_path / 'in.mp4'} is no video that OpenCV can read.\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", said)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_video_into_what_is_none(capfd, tmp_path):
    video(tmp_path / "in.avi")
    said = refused(capfd, "canny", tmp_path / "in.avi", tmp_path / "out.png")
    assert said == (
        f"canny: {tmp_path / 'out.png'} has no ending of a video; use .mp4, for example.\n"
    )
    said = refused(capfd, "canny", tmp_path / "in.avi", tmp_path / "none" / "out.avi")
    assert said == f"canny: {tmp_path / 'none'} is not a folder; create it first.\n"


def test_a_video_is_not_replaced_by_its_hints(capfd, tmp_path):
    path = tmp_path / "in.avi"
    video(path)
    before = path.read_bytes()
    said = refused(capfd, "invert", path, tmp_path / "." / "in.avi")
    assert said == f"invert: {path} is the video itself: name another place for the hint.\n"
    assert path.read_bytes() == before


def test_bar_of_a_folder(monkeypatch, png, tmp_path):
    screen = terminal(monkeypatch)
    assert main(["canny", str(tmp_path), str(tmp_path / "out")]) == 0
    last = screen.getvalue().strip().rpartition("\r")[2]
    assert re.match(r"canny: 100%\|.*\| 1/1 \[", last)


def test_bar_without_tqdm(monkeypatch, tmp_path):
    screen = terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    video(tmp_path / "in.avi", frames=2)
    assert main(["canny", str(tmp_path / "in.avi"), str(tmp_path / "out.avi")]) == 0
    assert screen.getvalue() == "\rcanny: 1 of 2\rcanny: 2 of 2\n"


def test_interrupt_leaves_no_part(monkeypatch, png, tmp_path):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    assert main(["canny", str(png), str(tmp_path / "out.png")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_folder_with_a_damaged_picture(capfd, png, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(png.read_bytes()[:50])
    (tmp_path / "a" / "2.png").write_bytes(png.read_bytes())
    assert main(["canny", str(tmp_path / "a"), str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert said.startswith("canny: 1 of 2 pictures failed:\n")
    assert "1.png is no picture" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2.png"]
