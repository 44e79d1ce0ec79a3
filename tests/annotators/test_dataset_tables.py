"""Data sets that a table describes: what rows give, and what is said of those that do not fit."""

import json
import sys
from pathlib import Path

import pytest

from controlnet_pack.annotators import AnnotatorError
from controlnet_pack.annotators.datasets import annotate_dataset, shards_of, sources

from .pictures import write
from .shard_cases import folder, members, out, refused

pytest.importorskip("webdataset", reason="needs webdataset")
__all__ = ["folder", "out"]  # fixtures

HEADER = "file_name,text,score,conditioning_image\n"


def entries_of(source: Path) -> list[sources.Entry]:
    (job,) = sources.jobs_of(source)
    return [*job.entries()]


def test_metadata_csv(folder, out):
    path = folder / "metadata.csv"
    path.write_text(f'{HEADER}a/1.png,"one, ""two""\nthree",0.5,h.png\n5.png,fünf,,\n', "utf-8")
    assert annotate_dataset("canny", folder, out).failed == ()
    found = members(out / "000000.tar")
    names = ["a/1.hint.png", "a/1.json", "a/1.png", "a/1.txt", "5.hint.png", "5.png", "5.txt"]
    assert [*found] == names
    assert found["a/1.txt"].decode() == 'one, "two"\nthree'
    assert found["5.txt"].decode() == "fünf"
    assert json.loads(found["a/1.json"]) == {"score": "0.5"}
    assert found["a/1.png"] == (folder / "a" / "1.png").read_bytes()


def test_csv_and_json_lines_are_read_alike(folder):
    table = folder / "metadata.csv"
    table.write_text("file_name,text,kind\r\n5.png,five,round\r\na/1.png,one,\r\n")
    rows = [{"file_name": "5.png", "text": "five", "kind": "round"}]
    rows += [{"file_name": "a/1.png", "text": "one"}]
    lines = folder / "metadata.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    assert entries_of(table) == entries_of(lines)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_row_without_a_caption_has_none_in_the_shard(folder, out, name):
    text = f"{HEADER}5.png,,,\n" if name.endswith("csv") else '{"file_name": "5.png", "text": ""}'
    (folder / name).write_text(text)
    annotate_dataset("canny", folder, out)
    assert [*members(out / "000000.tar")] == ["5.hint.png", "5.png"]


def test_byte_order_mark_is_no_part_of_the_first_name(folder):
    (folder / "metadata.csv").write_text("file_name,text\n5.png,five\n", "utf-8-sig")
    (entry,) = entries_of(folder)
    assert entry.picture == folder / "5.png"


def test_table_of_the_part_to_train_on(folder):
    write(folder / "train" / "6.png", 6)
    (folder / "train" / "metadata.csv").write_text("file_name,text\n6.png,six\n")
    (entry,) = entries_of(folder)
    assert (entry.picture, entry.beside) == (folder / "train" / "6.png", {"txt": b"six"})


def test_picture_that_a_table_names_and_that_is_not_there(folder, out):
    (folder / "metadata.csv").write_text("file_name,text\nno.png,none\n5.png,five\n")
    result = annotate_dataset("canny", folder, out)
    (failed,) = result.failed
    assert failed == f"{folder / 'no.png'}: No such file or directory"
    assert [*members(out / "000000.tar")] == ["5.hint.png", "5.png", "5.txt"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("5.png,five,1", "line 3: 3 cells, the header has 4."),
        ("5.png,five,1,,", "line 3: 5 cells, the header has 4."),
        (",five,1,", "line 3: expected a row that names a picture as target, file_name"),
        ('5.png,"five"x,1,', "line 3 is no CSV: "),
        ('5.png,"five,1,', "line 3 is no CSV: "),
    ],
)
def test_damaged_row_of_a_csv_is_named(folder, out, row, said):
    path = folder / "metadata.csv"
    path.write_text(f"{HEADER}a/1.png,one,1,\n{row}\n")
    refused(f"{path}, {said}", "canny", folder, out)
    assert not out.exists()


def test_csv_without_a_column_of_pictures(folder, out):
    path = folder / "metadata.csv"
    path.write_text("name,text\n5.png,five\n")
    refused(f"{path}, line 2: expected a row that names a picture as target", "canny", path, out)


@pytest.mark.parametrize("name", ["metadata.csv", "prompt.json"])
def test_table_in_another_encoding(folder, out, name):
    path = folder / name
    path.write_bytes("file_name,text\n5.png,fünf\n".encode("latin-1"))
    refused(f"{path} is not in UTF-8", "canny", folder, out)


def test_caption_of_half_a_character_is_written(folder, out):
    (folder / "prompt.json").write_text('{"target": "5.png", "prompt": "a \\ud83d b"}')
    annotate_dataset("canny", folder, out)
    assert members(out / "000000.tar")["5.txt"] == b"a ? b"


def test_without_pyarrow_it_says_how_to_install_it(tmp_path, out, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = "Reading .parquet files needs the package pyarrow, which can't be imported ("
    refused(said, "canny", tmp_path, out)
    with pytest.raises(AnnotatorError, match="Install it with: pip install pyarrow"):
        shards_of(tmp_path)
