"""The command line, end to end with the embedded model."""

import argparse
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnet_pack.cldm_core import (
    TINY,
    CldmError,
    ControlledUNet,
    UNetConfig,
    commands,
    tiny,
)
from controlnet_pack.cldm_core.__main__ import main, make_parser
from controlnet_pack.cldm_core.checkpoint import config_metadata, save
from controlnet_pack.cldm_core.checkpoint.formats import UNET_PREFIX
from controlnet_pack.cldm_core.pictures import check_writable, read_picture, write_picture

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


def test_modes_blocks_and_schedules_are_those_of_the_pipeline(tmp_path: Path) -> None:
    common = (
        *("sample", "crab", tmp_path / "crab.png", "--controlnet", "embedded:canny"),
        *("--hint", tiny.EXAMPLE, "--annotator", "annotators:canny", "--steps", "2"),
    )
    pictures = []
    for options in (
        ("--strength", "0"),
        ("--blocks", "rest: 0"),
        ("--schedule", "0: 0"),
        ("--mode", "control", "--curve", "diffusers"),
    ):
        assert main([*map(str, common), *options]) == 0
        pictures.append(read_picture(tmp_path / "crab.png"))
    off, no_blocks, never, steered = pictures
    assert np.array_equal(off, no_blocks)
    assert np.array_equal(off, never)
    assert not np.array_equal(off, steered)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("demo", "--picture", "nowhere.png"), "There is no picture nowhere.png"),
        (("demo", "--picture", "README.md"), "can't be read as a picture"),
        (("inspect", "README.md"), "is a text file, not a model"),
        (("sample", "a", "b.png", "--hint", "c.png"), "add --controlnet FILE"),
        (("sample", "a", "b.png", "--controlnet", "embedded:canny"), "add --hint PICTURE"),
        (
            ("sample", "a", "b.png", "--controlnet", "embedded:pose", "--hint", tiny.EXAMPLE),
            "no embedded net 'pose': choose embedded:canny or embedded:mask.",
        ),
        (("sample", "a", "b.png", "--checkpoint", "nowhere.ckpt"), "There is no file nowhere.ckpt"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str | Path, ...], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


HINTS = """
import numpy as np

def refuses(picture):
    raise ValueError("The picture is too dark.")

def grey(picture):
    return picture[..., 0]

def floats(picture):
    return picture / 255

def smaller(picture):
    return picture[::2, ::2]
"""


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        pytest.fail("a net was loaded before the arguments were checked")

    monkeypatch.setattr(commands, "load_control", load)
    monkeypatch.setattr(tiny, "load_pipeline", load)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--device cuda:99", "There is no device 'cuda:99' here: choose cpu"),
        ("--device foo", "There is no device 'foo' here: choose cpu"),
        ("--size -64", "-64x-64: both sides must be multiples of 8, at least 8"),
        ("--size 0", "0x0: both sides must be multiples of 8, at least 8"),
        ("--guidance nan", "The guidance is nan"),
        ("--seed -1", "The seeds start at -1"),
        ("--schedule=", "A schedule needs at least one keyframe"),
        ("--schedule=half", "'half' is no keyframe"),
        ("--annotator os:getcwd", "os:getcwd made no hint of the picture: "),
        ("--annotator .os:getcwd", "'.os:getcwd' can't be used"),
        ("--annotator builtins:type", "builtins:type gave type, expected a picture"),
        ("--annotator cldm_hints:refuses", "of the picture: The picture is too dark.\n"),
        ("--annotator cldm_hints:grey", "gave uint8 (128, 128), expected a picture, uint8"),
        ("--annotator cldm_hints:floats", "gave float64 (128, 128, 3), expected"),
        ("--annotator cldm_hints:smaller", "gave uint8 (64, 64, 3), expected"),
    ],
)
def test_options_are_checked_before_anything_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    sentence: str,
) -> None:
    (tmp_path / "cldm_hints.py").write_text(HINTS)
    monkeypatch.syspath_prepend(tmp_path)
    source = ["--controlnet", "embedded:canny", "--hint", str(tiny.EXAMPLE)]
    assert main(["sample", "a", str(tmp_path / "b.png"), *source, *options.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("out.xyz", "can't be written as 'out.xyz': let the name end in .png"),
        ("out", "can't be written as 'out': let the name end in .png"),
        ("folder.png", "is a folder: give the name of a file"),
        ("file/out.png", "can't be written ("),
        ("x" * 300 + ".png", "can't be written ("),
    ],
)
@pytest.mark.parametrize("command", [("demo", "--out"), ("sample", "a")])
def test_out_is_checked_before_anything_loads(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    name: str,
    sentence: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert main([*command, str(tmp_path / name)]) == 2
    assert sentence in capsys.readouterr().err


def test_the_check_of_out_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "out.png")
    assert not list(tmp_path.iterdir())


def test_an_unknown_scheduler_is_told_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "a", "b.png", "--scheduler", "heun2000"])
    assert "dpmpp_2m" in capsys.readouterr().err


def sampling(*options: str) -> argparse.Namespace:
    return make_parser().parse_args(["sample", "a", "b.png", *options])


def test_prediction_is_left_to_the_checkpoint() -> None:
    assert sampling().prediction is None


def test_the_embedded_model_draws_at_its_own_size() -> None:
    assert commands.settings_of(sampling()).width == tiny.SIZE
    assert commands.settings_of(sampling("--size", "64")).width == 64


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("--prediction v", "checkpoint"),
        ("--tokenizer clip", "checkpoint"),
        ("--control-type canny", "controlnet"),
        ("--guess-mode", "controlnet"),
    ],
)
@pytest.mark.usefixtures("nothing_loads")
def test_an_option_without_the_one_it_belongs_to(
    options: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "a", "b.png", *options.split()]) == 2
    name = options.split()[0]
    assert f"{name} is for --{wanted}: add --{wanted}, or leave {name} out" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["a_shuffle", "shuffled"])
def test_the_name_of_a_shuffle_net_is_heard(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file(load_file(tiny.weights("canny")), path)
    net = commands.open_net(sampling("--controlnet", str(path), "--device", "cpu"))
    named = name == "a_shuffle"
    assert net.config.global_average_pooling is named
    assert ("averaged over the picture" in capsys.readouterr().err) is named


def test_names_that_the_output_cannot_show_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "\N{SNOWMAN}.safetensors"
    save_file({"a": torch.ones(1)}, path)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "cp1252", write_through=True))
    assert main(["inspect", str(path)]) == 2
    assert b"\n\\u2603.safetensors: " in shown.getvalue()


def test_pictures_need_not_be_square(tmp_path: Path) -> None:
    settings = commands.settings_of(sampling("--size", "96x64"))
    assert (settings.width, settings.height) == (96, 64)
    out = tmp_path / "wide.png"
    hint = ("--controlnet", "embedded:canny", "--hint", str(tiny.EXAMPLE))
    assert main(["sample", "hut", str(out), *hint, "--size", "96x64", "--steps", "1"]) == 0
    assert read_picture(out).shape == (64, 96, 3)


@pytest.mark.parametrize("size", ["wide", "64x", "x64"])
def test_a_size_that_is_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sample", "a", "b.png", "--size", size])
    assert f"--size: {size!r} is no size: give 512 or 768x512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "options", "side"),
    [
        (TINY, (), 512),
        (TINY, ("--prediction", "v"), 768),
        (replace(TINY, prediction="v"), (), 768),
        (replace(TINY, prediction="v"), ("--prediction", "eps"), 512),
        (replace(TINY, adm_in_channels=32), (), 1024),
        (TINY, ("--size", "64x64"), 64),
    ],
)
def test_a_checkpoint_draws_at_its_own_size(
    tmp_path: Path, config: UNetConfig, options: tuple[str, ...], side: int
) -> None:
    path = tmp_path / "model.safetensors"
    with torch.device("meta"):
        outline = ControlledUNet(config).state_dict()
    state = {f"{UNET_PREFIX}{key}": torch.zeros(value.shape) for key, value in outline.items()}
    save(state, path, config_metadata(config))
    settings = commands.settings_of(sampling("--checkpoint", str(path), *options))
    assert (settings.width, settings.height) == (side, side)


@pytest.mark.parametrize(
    ("there", "options", "expected"),
    [
        (True, (), ("cuda", torch.float16)),
        (False, (), ("cpu", torch.float32)),
        (True, ("--device", "cpu"), ("cpu", torch.float32)),
        (True, ("--device", "cuda:1"), ("cuda:1", torch.float16)),
        (False, ("--device", "mps"), ("mps", torch.float32)),
        (True, ("--dtype", "fp32"), ("cuda", torch.float32)),
        (False, ("--dtype", "bf16"), ("cpu", torch.bfloat16)),
    ],
)
@pytest.mark.parametrize("command", ["sample", "generate"])
def test_a_gpu_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    there: bool,
    options: tuple[str, ...],
    expected: tuple[str, torch.dtype],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    arguments = make_parser().parse_args([command, "a", "b", *options])
    assert (commands.device_of(arguments), commands.dtype_of(arguments)) == expected


def test_a_late_error_stands_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", "a", str(tmp_path / "b.png"), "--steps", "1000"]) == 2
    assert capsys.readouterr().err.startswith("python -m cldm_core: 1000 steps were asked for")


def test_the_bar_is_closed_by_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def sample() -> None:
        with commands.progress_bar("sampling") as progress:
            progress(1, 3)
            raise CldmError("No.")

    with pytest.raises(CldmError):
        sample()
    told = capsys.readouterr().err
    assert "1/3" in told
    assert told.endswith("\n")


def test_inspect_names_what_a_file_holds() -> None:
    done = run("inspect", tiny.weights("canny"), tiny.weights("unet"))
    assert done.returncode == 0, done.stderr
    above, _, net, base, noted = done.stdout.splitlines()
    assert noted == "control_canny.safetensors: the hint must be: canny"
    assert above == "all: base embedded model, keys cldm, dtype fp16"
    for cell in ("ControlNet", "3", "no", "3.0 M"):
        assert f"  {cell}  " in net
    assert "  base model  " in base


def test_a_checkpoint_that_does_not_do_is_named_with_its_part(tmp_path: Path) -> None:
    done = run("sample", "a", tmp_path / "b.png", "--checkpoint", tiny.weights("unet"))
    assert done.returncode == 2
    assert "The autoencoder of unet.safetensors can't be loaded: The checkpoint has no" in (
        done.stderr
    )
    done = run("sample", "a", tmp_path / "b.png", "--checkpoint", tiny.weights("canny"))
    assert "The UNet of control_canny.safetensors can't be loaded: " in done.stderr


@pytest.mark.parametrize("name", ["ü.png", "picture.jpg", "picture.webp"])
def test_pictures_survive_their_files(tmp_path: Path, name: str) -> None:
    picture = np.full((5, 7, 3), (200, 100, 50), np.uint8)
    write_picture(picture, tmp_path / name)
    assert np.abs(read_picture(tmp_path / name).astype(int) - picture).max() <= 6


def test_an_empty_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(CldmError, match="can't be read as a picture"):
        read_picture(tmp_path / "empty.png")


def test_a_picture_of_an_unknown_kind_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CldmError, match=r"let the name end in \.png"):
        write_picture(np.zeros((8, 8, 3), np.uint8), tmp_path / "out.xyz")
    assert not list(tmp_path.iterdir())


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    import cv2

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (0, 0, 255, 255)
    cv2.imwrite(str(tmp_path / "cut.png"), rgba)
    picture = read_picture(tmp_path / "cut.png")
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[3, 3].tolist() == [255, 255, 255]
    assert read_picture(tmp_path / "cut.png", alpha=True).shape == (4, 4, 4)
