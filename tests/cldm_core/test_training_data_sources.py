"""Every format of pairs, and the sentences where one is wrong."""

import io
import json
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet_pack.cldm_core.errors import CldmError
from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.training.pairs import FilePicture, Pair, held_picture
from controlnet_pack.cldm_core.training.records import Names, Records
from controlnet_pack.cldm_core.training.shards import ShardPairs
from controlnet_pack.cldm_core.training.sources import (
    ListedPairs,
    hold_out,
    open_source,
    shard_files,
)

from .training_pairs import line_hint, picture, write_prompt_json

COUNT = 5


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def assert_numbered(source, prompt: str = "picture {}") -> None:
    """The source holds COUNT pairs, each with its own target, hint and prompt."""
    assert len(source) == COUNT
    for number in range(COUNT):
        pair = source[number]
        assert np.array_equal(pair.read_target(), picture(number))
        assert np.array_equal(pair.read_hint(), line_hint(number))
        assert pair.prompt == prompt.format(number)
        assert pair.target.size() == (64, 64)


def test_the_originals_prompt_json(tmp_path):
    write_prompt_json(tmp_path, COUNT)
    assert_numbered(open_source(tmp_path))
    assert_numbered(open_source(tmp_path / "prompt.json"))


def test_empty_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    write_prompt_json(tmp_path, COUNT)
    lines = (tmp_path / "prompt.json").read_text(encoding="utf-8").splitlines()
    (tmp_path / "prompt.json").write_text("\n\n".join(lines), encoding="utf-8-sig")
    source = open_source(tmp_path)
    assert_numbered(source)
    assert source[1].where.endswith("prompt.json, line 3")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{broken", "line 2 is no JSON"),
        ('["a"]', "line 2 is no JSON object"),
        ('{"source": "a.png", "target": "b.png"}', "line 2 has no 'prompt'"),
        ('{"source": "a.png", "target": 3, "prompt": ""}', "line 2: 'target' is 3"),
        (b'{"prompt": "\xff"}', "line 2 is not in UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, told):
    write_prompt_json(tmp_path, 1)
    raw = line if isinstance(line, bytes) else line.encode()
    with open(tmp_path / "prompt.json", "ab") as file:
        file.write(raw + b"\n")
    source = open_source(tmp_path)
    assert source[0].prompt == "picture 0"
    with pytest.raises(CldmError, match=rf"prompt\.json, {told}"):
        source[1]


def test_one_json_list_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "prompt.json").write_text("[\n{}\n]", encoding="utf-8")
    with pytest.raises(CldmError, match="one on each line"):
        open_source(tmp_path)


def write_folder(folder: Path, conditioning: Path) -> None:
    for number in range(COUNT):
        write_picture(picture(number), folder / f"{number}.png")
        write_picture(line_hint(number), conditioning / f"{number}.png")
        (folder / f"{number}.txt").write_text(f" picture\n{number} ", encoding="utf-8")


@pytest.mark.parametrize(
    ("targets", "hints", "opened"),
    [
        (".", "conditioning", "."),
        (".", "hints", "."),
        ("target", "source", "target"),
        ("images", "conditioning_images", "."),
    ],
)
def test_a_folder_with_captions_and_a_folder_of_hints(tmp_path, targets, hints, opened):
    write_folder(tmp_path / targets, tmp_path / hints)
    assert_numbered(open_source(tmp_path / opened))


def test_a_folder_of_hints_anywhere(tmp_path):
    write_folder(tmp_path / "mine", tmp_path / "lines")
    assert_numbered(open_source(tmp_path / "mine", conditioning=tmp_path / "lines"))
    with pytest.raises(CldmError, match="no folder of hints"):
        open_source(tmp_path / "mine", conditioning=tmp_path / "none")


def test_hints_inside_the_folder_are_no_targets_however_they_are_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", tmp_path / "a" / "lines")
    monkeypatch.chdir(tmp_path)
    assert_numbered(open_source("a", conditioning=tmp_path / "a" / "lines"))
    assert_numbered(open_source(tmp_path / "a", conditioning="a/lines"))


def test_hidden_files_are_no_pictures(tmp_path):
    write_folder(tmp_path, tmp_path / "hints")
    (tmp_path / "._0.png").write_bytes(b"macOS")
    write_picture(picture(0), tmp_path / ".thumbs" / "0.png")
    assert_numbered(open_source(tmp_path))


def test_folders_inside_a_folder(tmp_path):
    write_folder(tmp_path / "a" / "b", tmp_path / "hints" / "a" / "b")
    source = open_source(tmp_path)
    assert_numbered(source)
    assert source[0].name == "a/b/0.png"


def test_a_folder_may_lack_captions_and_hints(tmp_path):
    write_picture(picture(0), tmp_path / "one.png")
    pair = open_source(tmp_path)[0]
    assert pair.prompt == ""
    assert pair.hint is None
    with pytest.raises(CldmError, match=r"one\.png has no hint: give the hints, or a function"):
        pair.read_hint()


def test_a_hint_may_end_otherwise(tmp_path):
    write_picture(picture(0), tmp_path / "one.png")
    write_picture(line_hint(0), tmp_path / "hints" / "one.webp")
    assert open_source(tmp_path)[0].read_hint().shape == (64, 64, 3)


def test_strays_are_named(tmp_path):
    write_folder(tmp_path, tmp_path / "hints")
    (tmp_path / "3.png").unlink()
    told = [*open_source(tmp_path).strays()]
    assert len(told) == 2
    assert "3.png has no target" in told[0]
    assert "3.txt has no target" in told[1]


def write_pictures(folder: Path) -> None:
    for number in range(COUNT):
        write_picture(picture(number), folder / f"{number}.png")
        write_picture(line_hint(number), folder / "lines" / f"{number}.png")


@pytest.mark.parametrize(
    ("hint", "caption"),
    [("conditioning_image_file_name", "text"), ("conditioning_image", "caption")],
)
@pytest.mark.parametrize("split", [".", "train"])
def test_hugging_face_metadata_as_json_lines(tmp_path, hint, caption, split):
    write_pictures(tmp_path / split)
    records = [
        {"file_name": f"{n}.png", hint: f"lines/{n}.png", caption: f"picture {n}"}
        for n in range(COUNT)
    ]
    (tmp_path / split / "metadata.jsonl").write_text(jsonl(*records), encoding="utf-8")
    assert_numbered(open_source(tmp_path))


def test_hugging_face_metadata_as_csv_with_lines_in_cells(tmp_path):
    write_pictures(tmp_path)
    rows = [f'{n}.png,lines/{n}.png,"picture, ""\nno"" {n}"\n' for n in range(COUNT)]
    header = "file_name,conditioning_image_file_name,text\n"
    (tmp_path / "metadata.csv").write_text(header + "".join(rows), encoding="utf-8")
    source = open_source(tmp_path)
    assert_numbered(source, 'picture, "\nno" {}')
    assert source[2].where.endswith("line 6")


def test_quotes_inside_a_cell_of_csv_are_letters(tmp_path):
    rows = 'a.png,a 5" pipe\nb.png,a hut\nc.png,"a ""tree"""\n\nd.png,a 6" nail\n'
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}", encoding="utf-8-sig")
    records = Records(tmp_path / "metadata.csv")
    texts = [records[number]["text"] for number in range(len(records))]
    assert texts == ['a 5" pipe', "a hut", 'a "tree"', 'a 6" nail']
    assert records.where(3).endswith("line 6")


@pytest.mark.parametrize("row", ['a.png,"a\n', 'a.png,"a" b\n'])
def test_a_row_of_csv_without_an_end_is_named_and_swallows_no_other(tmp_path, row):
    table = f"file_name,text\n0.png,first\n{row}z.png,last\n"
    (tmp_path / "metadata.csv").write_bytes(table.encode())
    with pytest.raises(CldmError, match=r"metadata\.csv, line 3 is no CSV: .*quotes within it"):
        open_source(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_csv_may_end_as_on_any_system(tmp_path, end):
    table = end.join(["file_name,text", "a.png,a", 'b.png,"b', 'c"', "c.png,d"])
    (tmp_path / "metadata.csv").write_bytes(table.encode())
    records = Records(tmp_path / "metadata.csv")
    assert [records[number]["text"] for number in range(3)] == ["a", f"b{end}c", "d"]
    assert records.where(2).endswith("line 5")


def test_a_row_of_csv_that_is_not_in_utf_8_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,a\nb.png,\xff\n")
    source = open_source(tmp_path)
    assert source[0].prompt == "a"
    with pytest.raises(CldmError, match="line 3 is not in UTF-8"):
        source[1]


def test_a_row_of_csv_with_too_few_cells_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png\n", encoding="utf-8")
    with pytest.raises(CldmError, match=r"metadata\.csv, line 3: 1 cells, the header has 2"):
        open_source(tmp_path)[1]


def test_columns_may_be_named(tmp_path):
    write_pictures(tmp_path)
    records = [{"p": f"{n}.png", "h": f"lines/{n}.png", "c": f"picture {n}"} for n in range(COUNT)]
    (tmp_path / "metadata.jsonl").write_text(jsonl(*records), encoding="utf-8")
    columns = {"target": "p", "hint": "h", "prompt": "c"}
    assert_numbered(open_source(tmp_path, columns=columns))
    with pytest.raises(CldmError, match="no column for the target"):
        open_source(tmp_path)
    with pytest.raises(CldmError, match=r"no column for the hint \(x\)"):
        open_source(tmp_path, columns={**columns, "hint": "x"})


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def png(data: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(data).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, numbers: range, hint: str = "hint", *, record: bool = False) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            key = f"set/{number:03d}"
            add(tar, f"{key}.png", png(picture(number)))
            add(tar, f"{key}.{hint}.png", png(line_hint(number)))
            if record:
                add(tar, f"{key}.json", json.dumps({"text": f"picture {number}"}).encode())
            else:
                add(tar, f"{key}.txt", f"picture {number}\n".encode())
            add(tar, f"{key}.cls", b"7")
    return path


@pytest.mark.parametrize("hint", ["hint", "conditioning", "source"])
@pytest.mark.parametrize("record", [False, True])
def test_shards(tmp_path, hint, record):
    write_shard(tmp_path / "0.tar", range(2), hint, record=record)
    write_shard(tmp_path / "1.tar", range(2, COUNT), hint, record=record)
    source = open_source(tmp_path)
    assert_numbered(source)
    assert source.shards.tolist() == [0, 0, 1, 1, 1]
    assert source[3].name == "set/003"


def test_names_of_shards_may_be_counted(tmp_path):
    write_shard(tmp_path / "p-08.tar", range(2))
    write_shard(tmp_path / "p-09.tar", range(2, 4))
    write_shard(tmp_path / "p-10.tar", range(4, COUNT))
    assert_numbered(open_source(tmp_path / "p-{08..10}.tar"))
    with pytest.raises(CldmError, match=r"no file .*p-11\.tar"):
        open_source(tmp_path / "p-{08..11}.tar")


def test_the_shards_of_a_place_are_those_that_are_read(tmp_path):
    first, second = (write_shard(tmp_path / f"p-{n}.tar", range(2)) for n in range(2))
    both = [first, second]
    assert shard_files(tmp_path) == shard_files(tmp_path / "p-{0..1}.tar") == both
    assert shard_files(second) == [second]
    write_prompt_json(tmp_path, 1)
    assert shard_files(tmp_path) == []


def test_the_index_of_a_shard_is_kept_and_renewed(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(COUNT))
    assert_numbered(ShardPairs([path], tmp_path / "cache"))
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    assert_numbered(ShardPairs([path], tmp_path / "cache"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert_numbered(ShardPairs([path], tmp_path / "cache"))
    write_shard(path, range(2))
    assert len(ShardPairs([path], tmp_path / "cache")) == 2


def test_what_is_no_shard_is_refused(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(COUNT))
    whole = path.read_bytes()
    for wrong in (b"no tar at all", whole[: len(whole) // 2 + 100]):
        path.write_bytes(wrong)
        with pytest.raises(CldmError, match=r"0\.tar can't be read as a shard"):
            open_source(path)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "0.png", png(picture(0)))
    with pytest.raises(CldmError, match="uncompressed"):
        open_source(path)


def test_a_shard_names_hints_without_a_target(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.png", png(picture(0)))
        add(tar, "b.hint.png", png(line_hint(0)))
    source = open_source(tmp_path / "0.tar")
    assert len(source) == 1
    assert [*source.strays()] == [
        f"b in {tmp_path / '0.tar'} has a hint or a caption, but no target."
    ]


def test_a_record_in_a_shard_without_a_caption_is_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.png", png(picture(0)))
        add(tar, "a.json", b'{"width": 3}')
    with pytest.raises(CldmError, match=r"a\.json in .* has no caption"):
        open_source(tmp_path / "0.tar")[0]


def test_a_shard_that_became_shorter_is_a_sentence(tmp_path):
    path = write_shard(tmp_path / "0.tar", range(COUNT))
    pair = open_source(path)[COUNT - 1]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CldmError, match="become shorter"):
        pair.read_target()


@pytest.mark.parametrize("kind", ["a table", "shards"])
def test_a_folder_of_hints_is_refused_where_nothing_looks_into_it(tmp_path, kind):
    write_prompt_json(tmp_path, 1)
    if kind == "shards":
        (tmp_path / "prompt.json").unlink()
        write_shard(tmp_path / "0.tar", range(1))
    told = f"source, but .* has its hints in its {kind.split()[-1]}: leave it out"
    with pytest.raises(CldmError, match=told):
        open_source(tmp_path, conditioning=tmp_path / "source")
    assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["pictures", "shards"])
def test_columns_are_refused_where_there_is_no_table(tmp_path, kind):
    write_picture(picture(0), tmp_path / "0.png")
    if kind == "shards":
        write_shard(tmp_path / "0.tar", range(1))
    with pytest.raises(CldmError, match=r"named \(edges\), but .* has no table \(prompt\.json, "):
        open_source(tmp_path, columns={"hint": "edges"})
    assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize("name", ["none", "empty", "text.md"])
def test_what_is_no_data_set_is_a_sentence(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.md").touch()
    with pytest.raises(CldmError, match=r"is no data set|holds no pair"):
        open_source(tmp_path / name)


def test_a_missing_picture_is_named_with_its_line(tmp_path):
    source = open_source(write_prompt_json(tmp_path, 2))
    (tmp_path / "source" / "1.png").unlink()
    with pytest.raises(CldmError, match=r"prompt\.json, line 2\) can't be read\. There is no file"):
        source[1].read_hint()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", "folder", "../none"])
def test_impossible_names_are_sentences(tmp_path, name):
    (tmp_path / "folder").mkdir()
    record = {"target": name, "prompt": "half a \ud83d character"}
    (tmp_path / "prompt.json").write_text(json.dumps(record), encoding="utf-8")
    pair = open_source(tmp_path)[0]
    assert not pair.target.exists()
    assert pair.prompt == "half a ? character"
    for use in (pair.target.size, pair.target.stamp, pair.target.data, pair.target.read):
        if use == pair.target.stamp and name == "folder":
            continue
        with pytest.raises(CldmError, match=r"There is no file|can't be read: "):
            use()


def test_what_has_no_end_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (Path("/dev/null"), tmp_path / "pipe.png"):
        for use in (FilePicture(path).size, FilePicture(path).data):
            with pytest.raises(CldmError, match="can't be read: it is no file"):
                use()


def test_a_picture_too_large_to_read_is_a_sentence(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    picture = FilePicture(tmp_path / "a.png")
    for use in (picture.size, picture.read):
        with pytest.raises(CldmError, match=r"a\.png can't be read as a picture"):
            use()


def test_photos_are_turned_as_their_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 40, 60)).save(tmp_path / "photo.jpg", exif=exif)
    photo = FilePicture(tmp_path / "photo.jpg")
    assert photo.size() == photo.read().shape[:2] == (60, 40)


def test_pictures_in_memory_are_pairs_too():
    pairs = [
        Pair(str(n), "", held_picture(picture(n), "t"), held_picture(line_hint(n), "h"))
        for n in range(2)
    ]
    source = ListedPairs(pairs)
    assert np.array_equal(source[1].read_target(), picture(1))
    assert source[0].target.stamp() != source[1].target.stamp()
    assert source[0].target.stamp() == held_picture(picture(0), "other").stamp()


def test_what_is_held_out_is_not_trained_on(tmp_path):
    source = open_source(write_prompt_json(tmp_path, 10))
    train, held = hold_out(source, 3)
    names = [[part[n].name for n in range(len(part))] for part in (train, held)]
    assert [len(part) for part in names] == [7, 3]
    assert len({*names[0], *names[1]}) == 10
    assert hold_out(source, 3)[1].stamp() == held.stamp() != hold_out(source, 3, 1)[1].stamp()
    with pytest.raises(CldmError, match=r"10 of 10 pairs were to be held out \(held_out\), which"):
        hold_out(source, 10)


def test_the_index_of_a_hundred_thousand_lines_is_small(tmp_path):
    line = {"source": "source/{}.png", "target": "target/{}.png", "prompt": "a long one " * 10}
    text = json.dumps(line)
    with open(tmp_path / "prompt.json", "w", encoding="utf-8") as file:
        file.writelines(text.replace("{}", str(number)) + "\n" for number in range(100_000))
    tracemalloc.start()
    source = open_source(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 100_000
    assert source[99_999].name == "target/99999.png"
    assert kept < 2e6  # the file has 17 MB
    assert peak < 6e6


def test_the_index_of_a_hundred_thousand_files_is_small(tmp_path, monkeypatch):
    from controlnet_pack.cldm_core.training import sources

    names = [f"{number:06d}.png" for number in range(100_000)]
    walked = [(str(tmp_path), [], names)]
    monkeypatch.setattr(sources.os, "walk", lambda *_, **__: iter(walked))
    tracemalloc.start()
    source = open_source(tmp_path)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source[99_999].name == "099999.png"
    assert kept < 3e6


def test_the_index_of_a_hundred_thousand_pairs_in_shards_is_small(tmp_path, monkeypatch):
    from controlnet_pack.cldm_core.training import shards

    count = 50_000
    names = Names(f"{number:08d}" for number in range(count)).arrays
    table = np.ones((count, shards.PARTS), np.uint32)

    def scan(_):
        found = {"blocks": table.copy(), "lengths": table.copy()}
        none = Names(()).arrays
        return {
            **found,
            "names": names[0],
            "names_ends": names[1],
            "strays": none[0],
            "strays_ends": none[1],
        }

    monkeypatch.setattr(shards, "_scan", scan)
    paths = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for path in paths:
        path.touch()
    tracemalloc.start()
    source = ShardPairs(paths)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 2 * count
    assert kept < 6e6


def test_records_are_read_late(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    records = Records(path)
    path.write_text('{"a": 3}\n{"a": 4}\n', encoding="utf-8")
    assert records[1] == {"a": 4}
