"""`python -m annotators NAME in out --shards N`: what a user types and what is said."""

import re
from pathlib import Path

import pytest

from controlnet_pack.annotators.__main__ import main
from controlnet_pack.annotators.datasets import annotate_dataset

from .cli_cases import refused, terminal
from .pictures import write

pytest.importorskip("webdataset", reason="needs webdataset")


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed in range(5):
        write(tmp_path / "pictures" / f"{seed}.png", seed)
    return tmp_path / "pictures"


def test_shards(capfd, folder, tmp_path):
    command = ["canny", str(folder), str(tmp_path / "out"), "--shards", "2"]
    assert main([*command, "--low_threshold", "50"]) == 0
    assert capfd.readouterr() == ("", "")
    annotate_dataset("canny", folder, tmp_path / "same", shard_size=2, low_threshold=50)
    for name in ("000000.tar", "000001.tar", "000002.tar", "annotated.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_shards_in_are_shards_out(folder, tmp_path):
    annotate_dataset("canny", folder, tmp_path / "a")
    assert main(["invert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["invert", str(tmp_path / "a" / "0*.tar"), str(tmp_path / "c")]) == 0
    one, two = (tmp_path / name / "000000.tar" for name in "bc")
    assert one.read_bytes() == two.read_bytes()


def test_pictures_that_are_left_out_are_told(capfd, folder, tmp_path):
    (folder / "3.png").write_text("text")
    command = ["canny", str(folder), str(tmp_path / "out"), "--shards", "2"]
    told = (
        "canny: 1 pictures are not in the shards:\n"
        "3.png is no picture that OpenCV can read, or it is damaged.\n"
    )
    for arguments, code in ((command, 0), ([*command, "--strict"], 1)):
        assert main(arguments) == code
        assert capfd.readouterr().err == told


def test_a_long_list_is_in_the_files(capfd, folder, tmp_path):
    for number in range(30):
        (folder / f"x{number}.png").touch()
    out = tmp_path / "out"
    assert main(["canny", str(folder), str(out), "--shards", "9"]) == 0
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 22
    assert said[-1] == f"and 10 more, in the files {out}/*.failed.txt"


def test_bar_of_a_data_set(monkeypatch, folder, tmp_path):
    screen = terminal(monkeypatch)
    assert main(["canny", str(folder), str(tmp_path / "out"), "--shards", "2"]) == 0
    last = screen.getvalue().strip().rpartition("\r")[2]
    assert re.match(r"canny: 100%\|.*\| 5/5 \[", last)


def test_options_of_data_sets_are_for_them_alone(capfd, folder, tmp_path):
    out = tmp_path / "out"
    said = "canny: --workers and --strict are for data sets: add --shards 1000.\n"
    assert refused(capfd, "canny", folder, out, "--strict") == said
    assert refused(capfd, "canny", folder, out, "--workers", 2) == said
    said = "canny: Hints in shards are .png or .npy: leave --format out.\n"
    assert refused(capfd, "canny", folder, out, "--shards", 2, "--format", "jpg") == said
    with pytest.raises(SystemExit, match="2"):
        main(["canny", str(folder), str(out), "--shards", "0"])
    assert "--shards: it is 0, but it has to be at least 1." in capfd.readouterr().err
    assert not out.exists()
