"""Data sets written: read by this trainer, the original and diffusers; whole after any stop."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from controlnet_pack.cldm_core.errors import CldmError
from controlnet_pack.cldm_core.training import dataset_writer
from controlnet_pack.cldm_core.training.circles import CirclePairs
from controlnet_pack.cldm_core.training.dataset_writer import DatasetWriter, write_shards
from controlnet_pack.cldm_core.training.pairs import Pair, held_picture
from controlnet_pack.cldm_core.training.sources import ListedPairs, Source, TablePairs, open_source

from .training_pairs import line_hint, picture, write_prompt_json

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, *numbers: int) -> DatasetWriter:
    writer = DatasetWriter(folder)
    for number in numbers:
        writer.add(picture(number), line_hint(number), f"picture {number}, é")
    return writer


def assert_numbered(source: Source, count: int) -> None:
    assert len(source) == count
    for number in range(count):
        pair = source[number]
        assert pair.prompt == f"picture {number}, é"
        assert np.array_equal(pair.read_target(), picture(number))
        assert np.array_equal(pair.read_hint(), line_hint(number))


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_reader_finds_its_table(tmp_path):
    write(tmp_path, 0, 1)
    assert_numbered(open_source(tmp_path), 2)
    assert_numbered(TablePairs(tmp_path / "metadata.jsonl"), 2)
    # tutorial_dataset.py of the original reads these three, relative to the folder.
    assert lines(tmp_path / "prompt.json")[1] == {
        "source": "source/000001.png",
        "target": "target/000001.png",
        "prompt": "picture 1, é",
    }
    # Hugging Face's image folders make columns of names that end in file_name: image and
    # conditioning_image, which train_controlnet.py of diffusers expects, as it does text.
    assert lines(tmp_path / "metadata.jsonl")[1] == {
        "file_name": "target/000001.png",
        "conditioning_image_file_name": "source/000001.png",
        "text": "picture 1, é",
    }


def test_diffusers_reads_it_through_hugging_faces_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    write(tmp_path / "data", 0, 1)
    found = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert found["train"].column_names == ["image", "conditioning_image", "text"]
    row = found["train"][1]
    assert np.array_equal(np.array(row["image"]), picture(1))
    assert np.array_equal(np.array(row["conditioning_image"]), line_hint(1))
    assert row["text"] == "picture 1, é"


def test_a_prompt_may_hold_anything(tmp_path):
    prompt = 'a "quoted"\nline,\twith ' + "\u2028 and " + "\U0001f600"
    DatasetWriter(tmp_path).add(picture(0), line_hint(0), prompt)
    assert len(DatasetWriter(tmp_path)) == 1
    assert open_source(tmp_path)[0].prompt == prompt
    assert TablePairs(tmp_path / "metadata.jsonl")[0].prompt == prompt


def test_writing_goes_on_where_it_was(tmp_path):
    write(tmp_path, 0, 1)
    assert len(DatasetWriter(tmp_path)) == 2
    write(tmp_path, 2)
    assert_numbered(open_source(tmp_path), 3)


@pytest.mark.parametrize("table", ["prompt.json", "metadata.jsonl"])
@pytest.mark.parametrize("left", [0, 10])
def test_half_a_pair_is_taken_back(tmp_path, table, left):
    write(tmp_path, 0, 1, 2)
    path = tmp_path / table
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:2]) + kept[2][:left])
    assert len(DatasetWriter(tmp_path)) == 2
    write(tmp_path, 2)
    assert_numbered(open_source(tmp_path), 3)
    assert_numbered(TablePairs(tmp_path / "metadata.jsonl"), 3)


def test_a_full_disk_is_a_sentence_and_costs_one_pair(tmp_path, monkeypatch):
    writer = write(tmp_path, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dataset_writer, "write_picture", full)
        with pytest.raises(CldmError, match=r"No space left on device.*What was written stays"):
            writer.add(picture(1), line_hint(1), "")
    writer.add(picture(1), line_hint(1), "picture 1, é")
    assert_numbered(open_source(tmp_path), 2)


def test_a_line_that_did_not_fit_is_taken_back(tmp_path, monkeypatch):
    writer = write(tmp_path, 0)
    dumps, calls = json.dumps, []

    def second_fails(record):
        calls.append(record)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return dumps(record)

    with monkeypatch.context() as patch:
        patch.setattr(dataset_writer.json, "dumps", second_fails)
        with pytest.raises(CldmError, match="No space left"):
            writer.add(picture(1), line_hint(1), "")
    assert len(lines(tmp_path / "prompt.json")) == len(lines(tmp_path / "metadata.jsonl")) == 1
    writer.add(picture(1), line_hint(1), "picture 1, é")
    assert_numbered(open_source(tmp_path), 2)


def test_a_folder_of_others_is_left_alone(tmp_path):
    write_prompt_json(tmp_path, 3)
    before = (tmp_path / "prompt.json").read_bytes()
    with pytest.raises(CldmError, match="not written here: choose an empty folder"):
        DatasetWriter(tmp_path)
    assert (tmp_path / "prompt.json").read_bytes() == before


def test_tables_that_were_changed_are_left_alone(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    for table in ("prompt.json", "metadata.jsonl"):
        path = tmp_path / table
        kept = path.read_bytes().splitlines(keepends=True)
        for wrong in (kept[:2], kept[1:]):
            path.write_bytes(b"".join(wrong))
            with pytest.raises(CldmError, match="were changed since they were written"):
                DatasetWriter(tmp_path)
            assert path.read_bytes() == b"".join(wrong)
        path.write_bytes(b"".join(kept))


def test_tables_shortened_alike_are_left_alone(tmp_path):
    write(tmp_path, 0, 1, 2, 3)
    for table in ("prompt.json", "metadata.jsonl"):
        kept = (tmp_path / table).read_bytes().splitlines(keepends=True)
        (tmp_path / table).write_bytes(b"".join([kept[0], *kept[2:]]))
    with pytest.raises(CldmError, match="were changed"):
        DatasetWriter(tmp_path)


def test_pairs_of_another_making_are_refused(tmp_path):
    about = {"net": "a", "sizes": (1, 2)}
    DatasetWriter(tmp_path, about).add(picture(0), line_hint(0), "")
    DatasetWriter(tmp_path, about)
    with pytest.raises(CldmError, match=r'made by \{"net": "a".*, not by \{\}'):
        DatasetWriter(tmp_path)


def test_a_folder_without_a_pair_may_get_pairs_of_another_making(tmp_path):
    DatasetWriter(tmp_path, {"seed": 1})
    DatasetWriter(tmp_path, {"seed": 2}).add(picture(0), line_hint(0), "picture 0, é")
    with pytest.raises(CldmError, match="holds pairs made by"):
        DatasetWriter(tmp_path, {"seed": 1})
    assert_numbered(open_source(tmp_path), 1)


def test_sizes_that_differ_are_refused(tmp_path):
    with pytest.raises(CldmError, match="64x64x3 and its hint 32x64x3"):
        DatasetWriter(tmp_path).add(picture(0), line_hint(0, 32), "")


KILL_WRITERS = """
import os, signal, sys, time
from pathlib import Path
from cldm_core.training.circles import write_circles

table, written = Path(sys.argv[1]) / "prompt.json", 0
for kill in range(6):
    child = os.fork()
    if not child:
        write_circles(sys.argv[1], 10**6, side=32, seed=1)
    while not table.exists() or len(table.read_bytes().splitlines()) < written + 8 + kill:
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    written = len(table.read_bytes().splitlines())
print(written)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
def test_killed_at_any_moment_the_set_is_whole(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILL_WRITERS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    count = len(DatasetWriter(tmp_path, {"circles": {"side": 32, "seed": 1}}))
    # What was written stayed, but for the pair that was being written.
    assert count >= int(run.stdout) - 1 >= 6 * 8
    stored, drawn = open_source(tmp_path), CirclePairs(count, 32, seed=1)
    assert len(stored) == len(TablePairs(tmp_path / "metadata.jsonl")) == count
    for index in range(count):
        assert np.array_equal(stored[index].read_target(), drawn[index].read_target())
        assert np.array_equal(stored[index].read_hint(), drawn[index].read_hint())


# ---- shards


def test_shards_hold_the_same_pairs(tmp_path):
    write(tmp_path / "loose", 0, 1, 2, 3, 4)
    told = []
    source = open_source(tmp_path / "loose")
    write_shards(source, tmp_path / "shards", per_shard=2, progress=lambda *done: told.append(done))
    assert told == [(2, 5), (4, 5), (5, 5)]
    stored = open_source(tmp_path / "shards")
    assert_numbered(stored, 5)
    assert stored.shards.tolist() == [0, 0, 1, 1, 2]
    assert stored[1].target.data() == source[1].target.data()


# webdataset leaves it to the interpreter to close its files.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    write(tmp_path / "loose", 0, 1)
    write_shards(open_source(tmp_path / "loose"), tmp_path / "shards")
    url = str(tmp_path / "shards" / "000000.tar")
    found = [*webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")]
    assert [sample["txt"] for sample in found] == ["picture 0, é", "picture 1, é"]
    assert np.array_equal(found[1]["png"], picture(1))
    assert np.array_equal(found[1]["hint.png"], line_hint(1))


def test_pairs_without_hint_or_file_can_be_in_shards(tmp_path):
    write_shards(ListedPairs([Pair("a", "", held_picture(picture(3), "t"))]), tmp_path)
    pair = open_source(tmp_path)[0]
    assert np.array_equal(pair.read_target(), picture(3))
    assert pair.hint is None


def test_colours_that_begin_as_a_file_does_are_colours(tmp_path):
    orange = np.full((8, 8, 3), (255, 216, 0), np.uint8)
    pair = Pair("a", "", held_picture(orange, "orange"))
    write_shards(ListedPairs([pair]), tmp_path)
    assert np.array_equal(open_source(tmp_path)[0].read_target(), orange)


def test_whole_shards_are_kept_and_others_written_anew(tmp_path):
    source = CirclePairs(5, 32)
    write_shards(source, tmp_path, per_shard=2)
    for name in ("000001.tar", "000002.tar"):
        os.utime(tmp_path / name, (1, 1))
    write_shards(CirclePairs(6, 32), tmp_path, per_shard=2)
    times = [(tmp_path / f"00000{n}.tar").stat().st_mtime for n in range(3)]
    assert times[1] == 1
    assert times[2] > 1
    assert len(open_source(tmp_path)) == 6


def test_a_shard_is_whole_or_not_there(tmp_path):
    class Failing(CirclePairs):
        def __getitem__(self, index):
            if index == 3:
                raise CldmError("a pair that can't be read")
            return super().__getitem__(index)

    with pytest.raises(CldmError, match="can't be read"):
        write_shards(Failing(5, 32), tmp_path, per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]


def test_empty_shards_are_refused(tmp_path):
    with pytest.raises(CldmError, match="at least 1"):
        write_shards(CirclePairs(5, 32), tmp_path, per_shard=0)
