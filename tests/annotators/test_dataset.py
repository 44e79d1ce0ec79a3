"""Data sets to shards: what goes in, what comes out, and what a second call does."""

import sys
from io import BytesIO

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, Annotator, AnnotatorError, annotate, canny
from controlnet_pack.annotators.datasets import annotate_dataset, shards
from controlnet_pack.annotators.errors import Unavailable

from .pictures import read, write
from .shard_cases import archive, folder, members, out, pixels, refused

wds = pytest.importorskip("webdataset", reason="needs webdataset")
__all__ = ["folder", "out"]  # fixtures


def test_folder(folder, out):
    result = annotate_dataset("canny", folder, out, shard_size=3)
    assert (result.made, result.shards, result.failed) == (2, 2, ())
    assert sorted(path.name for path in out.iterdir()) == [
        *("000000.tar", "000001.tar", "annotated.json")
    ]
    first, second = members(out / "000000.tar"), members(out / "000001.tar")
    assert [*first] == [
        *("4.hint.png", "4.jpg", "5.hint.png", "5.png"),
        *("a/1.hint.png", "a/1.png", "a/1.txt"),
    ]
    assert [*second] == [
        *("a/2.hint.png", "a/2.jpg", "a/2.json", "a/2.txt", "a/b/3.hint.png", "a/b/3.webp")
    ]
    assert first["4.jpg"] == (folder / "4.JPEG").read_bytes()
    assert second["a/b/3.webp"] == (folder / "a" / "b" / "3.webp").read_bytes()
    assert (first["a/1.txt"], second["a/2.txt"]) == (b"eins", b"zwei")
    assert second["a/2.json"] == b'{"score": 5}'


def test_paths_may_be_texts(folder, out):
    assert annotate_dataset("invert", str(folder), str(out)).made == 1
    assert annotate_dataset("invert", folder, out).made == 0


def test_hints_are_those_of_each_picture(tmp_path, out):
    folder = tmp_path / "pictures"
    write(folder / "1.png", 1, 40, 50)
    write(folder / "2.png", 2, 80, 100)  # the same size at the resolution
    write(folder / "3.png", 3, 30, 70)
    write(folder / "4.png", 4, 40, 50, channels=4)
    annotate_dataset("canny", folder, out, resolution=20, low_threshold=40)
    found = members(out / "000000.tar")
    for number in (1, 2, 3):
        picture = read(folder / f"{number}.png")
        hint = annotate("canny", picture, resolution=20, low_threshold=40)
        assert np.array_equal(pixels(found[f"{number}.hint.png"]), hint)
    rgba = cv2.cvtColor(cv2.imread(str(folder / "4.png"), -1), cv2.COLOR_BGRA2RGBA)
    hint = annotate("canny", rgba, resolution=20, low_threshold=40)
    assert np.array_equal(pixels(found["4.hint.png"]), hint)


def test_alpha_reaches_an_annotator_that_reads_it(tmp_path, out):
    path = write(tmp_path / "pictures" / "1.png", 1, channels=4)
    annotate_dataset("mask", path.parent, out)
    rgba = cv2.cvtColor(cv2.imread(str(path), -1), cv2.COLOR_BGRA2RGBA)
    hint = annotate("mask", rgba)
    assert np.array_equal(pixels(members(out / "000000.tar")["1.hint.png"]), hint)


# webdataset leaves the file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_was_written(folder, out):
    annotate_dataset("canny", folder, out)
    found = wds.WebDataset(str(out / "000000.tar"), shardshuffle=False).decode("rgb8")
    samples = {sample["__key__"]: sample for sample in found}
    assert [*samples] == ["4", "5", "a/1", "a/2", "a/b/3"]
    sample = samples["a/1"]
    assert sample["txt"] == "eins"
    assert np.array_equal(sample["hint.png"], canny(sample["png"]))
    assert samples["a/2"]["json"] == {"score": 5}


def test_hints_of_floats_are_npy(folder, out):
    mask = np.tri(24, 31, dtype=np.uint8) * 255
    annotate_dataset("inpaint", folder, out, mask=mask)
    data = members(out / "000000.tar")["a/1.hint.npy"]
    hint = np.load(BytesIO(data))
    assert hint.dtype == np.float32
    assert np.array_equal(hint, annotate("inpaint", read(folder / "a" / "1.png"), mask=mask))


def test_broken_pictures_are_told_and_left_out(folder, out):
    (folder / "a" / "1.png").write_bytes((folder / "a" / "1.png").read_bytes()[:60])
    (folder / "5.png").write_bytes(b"")
    result = annotate_dataset("canny", folder, out, shard_size=4)
    assert result.failed == (
        "5.png is no picture that OpenCV can read, or it is damaged.",
        "a/1.png is no picture that OpenCV can read, or it is damaged.",
    )
    keys = {name.partition(".")[0] for path in out.glob("*.tar") for name in members(path)}
    assert keys == {"4", "a/2", "a/b/3"}
    assert (out / "000000.failed.txt").read_text().splitlines() == [*result.failed]
    assert not (out / "000001.failed.txt").exists()


def test_picture_that_is_gone_is_told(folder, out):
    (folder / "prompt.json").write_text('{"target": "none.png"}\n{"target": "5.png"}\n')
    result = annotate_dataset("canny", folder, out)
    assert len(result.failed) == 1
    assert result.failed[0].startswith(str(folder / "none.png"))
    assert result.failed[0].endswith(": No such file or directory")
    assert [*members(out / "000000.tar")] == ["5.hint.png", "5.png"]


def test_picture_that_opencv_refuses_is_told(folder, out, monkeypatch):
    broken = (folder / "5.png").read_bytes()
    decode = cv2.imdecode

    def limited(data, flags):
        if data.tobytes() == broken:
            raise cv2.error("pixels <= CV_IO_MAX_IMAGE_PIXELS")
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", limited)
    (told,) = annotate_dataset("canny", folder, out).failed
    assert told.startswith("5.png is refused by OpenCV")


def test_strip_that_would_be_too_large_is_told_by_its_name(folder, out):
    write(folder / "5.png", 0, 1, 4096)
    result = annotate_dataset("canny", folder, out, resolution=300)
    assert len(result.failed) == 1
    assert result.failed[0].startswith("5.png: A picture of 4096 x 1 would have ")


def test_data_set_of_broken_pictures_alone(folder, out):
    (folder / "prompt.json").write_text('{"target": "notes.txt"}')
    assert len(annotate_dataset("canny", folder, out).failed) == 1
    assert members(out / "000000.tar") == {}


class Counted:
    """An annotator that notes the sizes of its batches, and refuses black pictures."""

    def __init__(self) -> None:
        self.seen = []

    def __call__(self, images):
        self.seen.append(len(images))
        if (images.reshape(len(images), -1).max(axis=1) == 0).any():
            raise AnnotatorError("It is black.")
        return 255 - images


@pytest.fixture
def counted(monkeypatch) -> Counted:
    run = Counted()
    record = Annotator("counted", "Counted", "Counts.", run, batched=True)
    monkeypatch.setitem(ANNOTATORS, "counted", record)
    return run


def test_pictures_of_one_working_size_are_one_batch(tmp_path, out, counted):
    for number in range(6):
        height = 32 if number % 2 else 64
        write(tmp_path / "pictures" / f"{number}.png", number, height, 32 * (1 + number % 2))
    annotate_dataset("counted", tmp_path / "pictures", out, resolution=16)
    assert counted.seen == [1, 3, 3]  # the first one is the check


def test_few_pictures_are_held_at_once(tmp_path, out, counted, monkeypatch):
    monkeypatch.setattr(shards, "WINDOW_PIXELS", 24 * 31 * 2)
    for number in range(5):
        write(tmp_path / "pictures" / f"{number}.png", number)
    annotate_dataset("counted", tmp_path / "pictures", out)
    assert counted.seen == [1, 2, 2, 1]
    assert [*members(out / "000000.tar")][::2] == [f"{number}.hint.png" for number in range(5)]


def test_one_that_is_refused_takes_no_others_with_it(folder, out, counted):
    cv2.imwrite(str(folder / "5.png"), np.zeros((24, 31, 3), np.uint8))
    result = annotate_dataset("counted", folder, out)
    assert result.failed == ("5.png: It is black.",)
    assert len(members(out / "000000.tar")) == 2 * 4 + 3


def test_what_no_picture_can_help_stops_all(folder, out, counted, monkeypatch):
    def lacking(images):
        if len(images) > 1:  # not the check
            raise Unavailable("face.pth isn't here.")
        return images

    record = Annotator("counted", "Counted", "Counts.", lacking, batched=True)
    monkeypatch.setitem(ANNOTATORS, "counted", record)
    refused("face.pth isn't here.", "counted", folder, out)
    assert [path.name for path in out.iterdir()] == ["annotated.json"]


def test_second_call_makes_nothing(folder, out):
    (folder / "5.png").write_bytes(b"")
    first = annotate_dataset("canny", folder, out, shard_size=2)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    second = annotate_dataset("canny", folder, out, shard_size=2)
    assert (first.made, second.made, second.shards) == (3, 0, 3)
    assert second.failed == first.failed
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_what_is_missing_is_made_and_equal(folder, out):
    annotate_dataset("canny", folder, out, shard_size=2)
    gone = out / "000001.tar"
    before = gone.read_bytes()
    gone.unlink()
    (out / "000001.7.part.tar").write_bytes(b"of a process that was killed")
    assert annotate_dataset("canny", folder, out, shard_size=2).made == 1
    assert gone.read_bytes() == before
    assert not [path for path in out.iterdir() if "part" in path.name]


def test_files_of_others_with_a_like_name_stay(folder, out):
    others = ("book.part.png", "x.part.rar", "archive.3.part.txt", "000000.7.part.png")
    out.mkdir()
    for name in others:
        (out / name).write_bytes(b"mine")
    annotate_dataset("canny", folder, out)
    assert {name: (out / name).read_bytes() for name in others} == dict.fromkeys(others, b"mine")


def test_shards_do_not_go_among_the_pictures(folder):
    before = set(folder.rglob("*"))
    refused(f"{folder} has the pictures themselves: name another folder.", "canny", folder, folder)
    assert set(folder.rglob("*")) == before


def test_progress(folder, out):
    told = []
    (folder / "5.png").write_bytes(b"")
    annotate_dataset("canny", folder, out, shard_size=2, show=lambda *counts: told.append(counts))
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    assert told == sorted(told)


def test_other_shards_are_not_mixed_in(folder, out):
    annotate_dataset("canny", folder, out, shard_size=2)
    before = {path: path.read_bytes() for path in out.iterdir()}
    has = f"{out} has shards made"
    refused(f"{has} with annotator canny: name", "invert", folder, out, shard_size=2)
    refused(f"{has} with low_threshold 100:", "canny", folder, out, shard_size=2, low_threshold=9)
    other = f"{has} of other pictures, or with another number of them in each:"
    refused(other, "canny", folder, out, shard_size=3)
    write(folder / "6.png", 6)
    refused(other, "canny", folder, out, shard_size=2)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_another_mask_is_another_data_set(folder, out):
    annotate_dataset("inpaint", folder, out, mask=np.zeros((4, 4), np.uint8))
    refused(
        f"{out} has shards made with another mask:",
        *("inpaint", folder, out),
        mask=np.ones((4, 4), np.uint8),
    )


def test_shards_of_others_are_left_alone(folder, tmp_path):
    shard = archive(tmp_path / "one.tar", **{"x.png": (folder / "5.png").read_bytes()})
    before = shard.read_bytes()
    refused(f"{tmp_path} has shards that were not made here", "canny", shard, tmp_path)
    assert shard.read_bytes() == before


def test_where_nothing_can_be_made_nothing_is_there(folder, out, no_network):
    refused("ControlNetHED.pth (29 MB) isn't here", "hed", folder, out, device="cpu")
    refused("inpaint needs a mask", "inpaint", folder, out)
    refused("low_threshold is 300", "canny", folder, out, low_threshold=300)
    refused("There is no annotator 'cany'; did you mean 'canny'?", "cany", folder, out)
    assert not out.exists()


def test_full_disk_leaves_whole_shards(folder, out, monkeypatch):
    written = []

    class FullDisk(wds.TarWriter):
        def write(self, sample):
            written.append(sample)
            if len(written) == 4:
                raise OSError(28, "No space left on device")
            return super().write(sample)

    with monkeypatch.context() as patch:
        patch.setattr(wds, "TarWriter", FullDisk)
        with pytest.raises(OSError, match="No space left"):
            annotate_dataset("canny", folder, out, shard_size=2)
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "annotated.json"]
    assert annotate_dataset("canny", folder, out, shard_size=2).made == 2


def test_without_webdataset_it_says_how_to_install_it(folder, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    refused("Install it with: pip install webdataset", "canny", folder, out)
