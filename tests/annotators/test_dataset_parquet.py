"""Data sets of Hugging Face in .parquet shards, as `datasets` writes them: whole and damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnet_pack.annotators import canny
from controlnet_pack.annotators.__main__ import main
from controlnet_pack.annotators.datasets import annotate_dataset, shards_of

from .pictures import write
from .shard_cases import archive, folder, members, out, pixels, refused

pytest.importorskip("webdataset", reason="needs webdataset")
arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
__all__ = ["folder", "out"]  # fixtures

IMAGE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
NAME = "train-00000-of-00001"


def shard(path: Path, rows: list[dict[str, Any]], image: Any = IMAGE, **kinds: Any) -> Path:
    """A table with the columns image and text, and those of `kinds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = arrow.schema({"image": image, "text": arrow.string(), **kinds})
    parquet.write_table(arrow.Table.from_pylist(rows, schema), path, row_group_size=2)
    return path


@pytest.fixture
def png(tmp_path) -> bytes:
    return write(tmp_path / "one.png", 3).read_bytes()


def cell(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def test_pictures_and_captions(folder, tmp_path, out):
    names = ["4.JPEG", "5.png", "b.c.webp"]
    files = [folder / "4.JPEG", folder / "5.png", folder / "a" / "b" / "3.webp"]
    rows = [
        {"image": cell(file.read_bytes(), name), "text": f"it is {name}", "score": 0.5}
        for file, name in zip(files, names, strict=True)
    ]
    shard(tmp_path / "hub" / "data" / f"{NAME}.parquet", rows, score=arrow.float64())
    result = annotate_dataset("canny", tmp_path / "hub", out)
    assert (result.made, result.shards, result.failed) == (1, 1, ())
    found = members(out / f"{NAME}.tar")
    keys = [("4", "jpg"), ("5", "png"), ("b_c", "webp")]
    for (key, ending), file, name in zip(keys, files, names, strict=True):
        assert found[f"{key}.{ending}"] == file.read_bytes()
        assert found[f"{key}.txt"].decode() == f"it is {name}"
        assert json.loads(found[f"{key}.json"]) == {"score": 0.5}
        assert np.array_equal(
            pixels(found[f"{key}.hint.png"]), canny(pixels(found[f"{key}.{ending}"]))
        )
    assert len(found) == 12


def test_many_rows_and_several_shards_keep_their_order(png, tmp_path, out):
    for number in range(2):
        rows = [{"image": cell(png), "text": f"{number} {row}"} for row in range(40)]
        shard(tmp_path / "hub" / f"{number}.parquet", rows)
    assert annotate_dataset("invert", tmp_path / "hub", out).shards == 2
    for number in range(2):
        found = members(out / f"{number}.tar")
        texts = {name: data.decode() for name, data in found.items() if name.endswith("txt")}
        expected = {f"{number}_{row + 1:06d}.txt": f"{number} {row}" for row in range(40)}
        assert texts == expected
        assert [*texts] == [*expected]


def test_a_hint_that_is_there_already_is_left_out(png, tmp_path, out):
    row = {"image": cell(png, "x.png"), "conditioning_image": cell(png), "text": "x"}
    path = shard(tmp_path / "0.parquet", [row], conditioning_image=IMAGE)
    annotate_dataset("canny", path, out)
    assert [*members(out / "0.tar")] == ["x.hint.png", "x.png", "x.txt"]


def test_facts_that_no_json_holds_are_left_out(png, tmp_path, out):
    row = {"image": cell(png, "x.png"), "mask": cell(png), "tags": ["a", "b"], "size": 3}
    kinds = {"mask": IMAGE, "tags": arrow.list_(arrow.string()), "size": arrow.int64()}
    annotate_dataset("canny", shard(tmp_path / "0.parquet", [row], **kinds), out)
    assert json.loads(members(out / "0.tar")["x.json"]) == {"tags": ["a", "b"], "size": 3}


def test_row_without_a_caption(png, tmp_path, out):
    path = shard(tmp_path / "0.parquet", [{"image": cell(png, "x.png"), "text": None}])
    annotate_dataset("canny", path, out)
    assert [*members(out / "0.tar")] == ["x.hint.png", "x.png"]


def test_two_pictures_of_one_name_are_kept_apart(png, tmp_path, out):
    rows = [{"image": cell(png, "x.png"), "text": text} for text in ("one", "two")]
    annotate_dataset("canny", shard(tmp_path / "0.parquet", rows), out)
    found = members(out / "0.tar")
    assert (found["x.txt"], found["x_2.txt"]) == (b"one", b"two")


@pytest.mark.parametrize("path", ["/pictures/x.png", "C:\\me\\x.png", "x.png"])
def test_whole_paths_of_another_machine_are_no_folders_of_a_shard(png, tmp_path, out, path):
    annotate_dataset("canny", shard(tmp_path / "0.parquet", [{"image": cell(png, path)}]), out)
    assert [*members(out / "0.tar")] == ["x.hint.png", "x.png"]


@pytest.mark.parametrize("kind", [arrow.binary(), arrow.large_binary()])
def test_column_of_bytes(folder, tmp_path, out, kind):
    picture = (folder / "4.JPEG").read_bytes()
    rows = [{"image": picture, "text": "four"}]
    annotate_dataset("canny", shard(tmp_path / "0.parquet", rows, kind), out)
    assert members(out / "0.tar")["0_000001.jpg"] == picture


def test_paths_are_relative_to_the_shard(folder, out):
    rows = [{"image": cell(None, "a/1.png"), "text": "one"}, {"image": cell(None, "no.png")}]
    failed = annotate_dataset("canny", shard(folder / "0.parquet", rows), out).failed
    assert failed == (f"0.parquet, row 2 (no.png): {folder / 'no.png'}: No such file or directory",)
    found = members(out / "0.tar")
    assert [*found] == ["a/1.hint.png", "a/1.png", "a/1.txt"]
    assert found["a/1.png"] == (folder / "a" / "1.png").read_bytes()


def test_metadata_of_an_image_folder(folder, out):
    table = arrow.table({"file_name": ["5.png"], "text": ["five"], "target": [3]})
    parquet.write_table(table, folder / "metadata.parquet")
    annotate_dataset("canny", folder, out)
    assert [*members(out / "metadata.tar")] == ["5.hint.png", "5.png", "5.txt"]


def test_damaged_rows_are_told_and_stop_nothing(png, tmp_path, out):
    rows = [
        {"image": None, "text": "nothing"},
        {"image": cell(None, None), "text": "nobody"},
        {"image": cell(png[:40], "cut.png"), "text": "half"},
        {"image": cell(png, "x.png"), "text": "whole"},
    ]
    failed = annotate_dataset("canny", shard(tmp_path / "0.parquet", rows), out).failed
    assert failed == (
        "0.parquet, row 1: there is no picture, but None.",
        "0.parquet, row 2: there is no picture, but {'bytes': None, 'path': None}.",
        "0.parquet, row 3 (cut.png) is no picture that OpenCV can read, or it is damaged.",
    )
    assert members(out / "0.tar")["x.txt"] == b"whole"


def test_damaged_shard_gives_what_can_be_read(png, tmp_path, out):
    rows = [{"image": cell(png, f"{row}.png"), "text": "x"} for row in range(40)]
    path = shard(tmp_path / "0.parquet", rows)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    failed = annotate_dataset("canny", path, out).failed
    assert failed[0].startswith("0.parquet")
    assert "0.png" in members(out / "0.tar")


def test_shard_that_is_none(png, tmp_path, out):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "0.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    shard(tmp_path / "hub" / "1.parquet", [{"image": cell(png, "x.png")}])
    (failed,) = annotate_dataset("canny", tmp_path / "hub", out).failed
    assert failed.startswith("0.parquet: it is damaged, and nothing behind row 0 was read (")
    assert "x.png" in members(out / "1.tar")


def test_table_without_pictures_beside_pictures_is_left_alone(folder, out):
    parquet.write_table(arrow.table({"url": ["x"], "text": ["y"]}), folder / "00000.parquet")
    assert shards_of(folder) == []
    annotate_dataset("canny", folder, out)
    assert "5.png" in members(out / "000000.tar")


def test_table_without_pictures_that_is_named(tmp_path, out):
    path = tmp_path / "0.parquet"
    parquet.write_table(arrow.table({"url": ["x"], "text": ["y"]}), path)
    (failed,) = annotate_dataset("canny", path, out).failed
    assert failed == (
        "0.parquet: expected pictures in a column target or file_name or image_file_name or "
        "image; it has url, text."
    )


def test_archives_and_tables_of_a_folder_come_first(folder, png, tmp_path, out):
    shard(folder / "0.parquet", [{"image": cell(png, "x.png")}])
    (folder / "metadata.csv").write_text("file_name,text\n5.png,five\n")
    assert shards_of(folder) == []
    tar = archive(folder / "one.tar", **{"x.png": png})
    assert shards_of(folder) == [tar]


def test_its_size_is_left_out_as_for_other_shards(png, tmp_path, out):
    path = shard(tmp_path / "0.parquet", [{"image": cell(png, "x.png")}])
    refused("is in shards already, and each becomes one", "canny", path, out, shard_size=9)


def test_command_line_takes_a_pattern(png, tmp_path, out):
    for name in ("train-0", "train-1", "test-0"):
        shard(tmp_path / "data" / f"{name}.parquet", [{"image": cell(png, "x.png")}])
    pattern = str(tmp_path / "data" / "train-*.parquet")
    assert main(["canny", pattern, str(out)]) == 0
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-0.tar", "train-1.tar"]
