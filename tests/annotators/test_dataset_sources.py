"""What a data set may be: folders, lists and shards, whole or damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet_pack.annotators import AnnotatorError, canny
from controlnet_pack.annotators.datasets import annotate_dataset, sources
from controlnet_pack.cldm_core.training.shards import ShardPairs

from .pictures import write
from .shard_cases import archive, folder, members, out, pixels, refused

pytest.importorskip("webdataset", reason="needs webdataset")
__all__ = ["folder", "out"]  # fixtures


def test_prompt_json(folder, out):
    rows = [
        {"source": "h/1.png", "target": "a/2.jpg", "prompt": "zwei & drei"},
        {"source": "h/2.png", "target": "5.png", "prompt": "fünf"},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    (folder / "prompt.json").write_text(text, encoding="utf-8")
    annotate_dataset("canny", folder, out)
    found = members(out / "000000.tar")
    assert [*found] == [
        *("a/2.hint.png", "a/2.jpg", "a/2.txt", "5.hint.png", "5.png", "5.txt"),
    ]
    assert found["5.txt"].decode() == "fünf"
    assert found["a/2.jpg"] == (folder / "a" / "2.jpg").read_bytes()


def test_metadata_jsonl(folder, out):
    rows = [
        {"file_name": "a/1.png", "text": "one", "conditioning_image": "h.png", "score": 0.5},
        {"file_name": "5.png"},
    ]
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    annotate_dataset("canny", path, out)
    found = members(out / "000000.tar")
    assert [*found] == ["a/1.hint.png", "a/1.json", "a/1.png", "a/1.txt", "5.hint.png", "5.png"]
    assert json.loads(found["a/1.json"]) == {"score": 0.5}


def test_hints_among_the_pictures_get_no_hints(folder, out):
    write(folder / "conditioning" / "1.png", 1)
    write(folder / "a" / "hints" / "1.png", 1)  # no folder of hints: those are at the top
    annotate_dataset("canny", folder, out)
    names = [name for name in members(out / "000000.tar") if name.endswith("1.png")]
    assert names == ["a/1.png", "a/hints/1.png"]


def test_the_trainer_reads_what_was_written(folder, out):
    lying = Image.open(folder / "a" / "2.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # its right side is up
    lying.save(folder / "6.jpg", exif=exif)
    annotate_dataset("canny", folder, out, resolution=20)
    pairs = ShardPairs([out / "000000.tar"])
    found = {pair.name: pair for pair in pairs}
    assert [*found] == ["4", "5", "6", "a/1", "a/2", "a/b/3"]
    assert found["6"].read_hint().shape == (26, 20, 3)
    assert (found["a/1"].prompt, found["a/2"].prompt, found["5"].prompt) == ("eins", "zwei", "")
    for pair in pairs:
        assert np.array_equal(pair.read_hint(), canny(pair.read_target(), resolution=20))
    assert [*pairs.strays()] == []


def test_shards_become_shards_of_the_same_names(folder, tmp_path, out):
    annotate_dataset("invert", folder, tmp_path / "before", shard_size=3)
    result = annotate_dataset("canny", tmp_path / "before", out)
    assert (result.made, result.failed) == (2, ())
    direct = tmp_path / "direct"
    annotate_dataset("canny", folder, direct, shard_size=3)
    for name in ("000000.tar", "000001.tar"):
        assert (out / name).read_bytes() == (direct / name).read_bytes()


@pytest.mark.parametrize("pattern", ["before/00000{0..1}.tar", "before/*.tar"])
def test_shards_by_a_pattern(folder, tmp_path, out, pattern):
    annotate_dataset("invert", folder, tmp_path / "before", shard_size=3)
    annotate_dataset("canny", tmp_path / pattern, out)
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]


def test_what_else_a_sample_holds_is_kept(folder, tmp_path, out):
    picture = (folder / "a" / "1.png").read_bytes()
    old = {"x.hint.jpg": b"old", "x.source.png": b"older"}
    files = {"x.cls": b"7", "x.mask.png": b"m", "x.PNG": picture, **old}
    annotate_dataset("canny", archive(tmp_path / "one.tar", **files), out)
    found = members(out / "one.tar")
    assert [*found] == ["x.cls", "x.hint.png", "x.mask.png", "x.png"]
    assert found["x.png"] == picture
    assert np.array_equal(pixels(found["x.hint.png"]), canny(pixels(picture)))


def test_damaged_shard_gives_what_can_be_read(folder, tmp_path, out):
    annotate_dataset("invert", folder, tmp_path / "before")
    shard = tmp_path / "before" / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:-13_000])
    (failed,) = annotate_dataset("canny", shard, out).failed
    assert failed.startswith("000000.tar: it is damaged, and no more could be read (")
    keys = {name.partition(".")[0] for name in members(out / "000000.tar")}
    assert {"4", "5"} <= keys < {"4", "5", "a/1", "a/2", "a/b/3"}


def test_samples_without_a_picture_and_files_that_are_there_twice(folder, tmp_path, out):
    picture = (folder / "a" / "1.png").read_bytes()
    files = {"x.txt": b"alone", "y.png": picture, "y.txt": b"first", "y.TXT": b"second"}
    failed = annotate_dataset("canny", archive(tmp_path / "one.tar", **files), out).failed
    assert failed[0] == "one.tar: x: there is no picture, only txt."
    assert failed[1].startswith("one.tar: y.TXT: duplicate file name")
    assert members(out / "one.tar")["y.txt"] == b"first"


def test_sources_that_are_none(folder, tmp_path, out):
    refused(f"There is no picture in {tmp_path / 'none'}.", "canny", empty(tmp_path / "none"), out)
    refused(f"{tmp_path / 'x'} is no data set: expected a folder", "canny", tmp_path / "x", out)
    refused("There is no shard ", "canny", tmp_path / "{0..3}.tar", out)
    for name in ("a", "b"):
        archive(empty(tmp_path / name) / "1.tar")
    refused("have the same name: put them", "canny", tmp_path / "{a,b}" / "1.tar", out)
    one = tmp_path / "a" / "1.tar"
    refused("is in shards already, and each becomes one", "canny", one, out, shard_size=9)


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("line", ["[1]", "{", '{"text": "no picture"}', '{"target": 3}'])
def test_line_of_a_list_that_names_no_picture(folder, out, line):
    (folder / "prompt.json").write_text('{"target": "5.png"}\n\n' + line + "\n")
    with pytest.raises(AnnotatorError, match=r"prompt\.json, line 3: expected a JSON object that"):
        annotate_dataset("canny", folder, out)


def test_keys_are_parted_alike_by_every_reader(tmp_path):
    names = ["a.b/c.d.png", "../up.png", "1.jpg", "1.png", "1.jpeg", "__x__/1.png"]
    lines = [json.dumps({"target": name}) for name in names]
    path = tmp_path / "prompt.json"
    path.write_text("\n".join(lines))
    (job,) = sources.jobs_of(path)
    keys = [entry.key for entry in job.entries()]
    assert keys == ["a_b/c_d", "up", "1", "1_2", "1_3", "x__/1"]
