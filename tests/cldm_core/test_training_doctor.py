"""The doctor: every finding is made where it is due, and a sound data set has none."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.pipeline import Picture
from controlnet_pack.cldm_core.training.circles import CirclePairs
from controlnet_pack.cldm_core.training.doctor import KINDS, Finding, Report, check
from controlnet_pack.cldm_core.training.pairs import Pair, held_picture
from controlnet_pack.cldm_core.training.sources import ListedPairs, Source, open_source

from .training_pairs import line_hint, picture, unhinted, write_prompt_json


def one(target: Picture | None = None, hint: Picture | None = None, prompt: str = "a") -> Report:
    """What is said about one pair of 64x64 pictures."""
    target = picture(0) if target is None else target
    hint = line_hint(0) if hint is None else hint
    pair = Pair("the pair", prompt, held_picture(target, "t"), held_picture(hint, "h"))
    return check(ListedPairs([pair]), resolution=64)


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, report.summary()
    return report.findings[0]


@pytest.fixture
def data(tmp_path) -> Path:
    return write_prompt_json(tmp_path / "data", 4)


def append(data: Path, **record: str) -> None:
    with open(data / "prompt.json", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def test_a_sound_data_set_has_no_finding(data):
    report = check(open_source(data), resolution=64)
    assert report.ok
    assert report.summary() == (
        "4 pairs, all of them looked at. Targets from 64x64 to 64x64.\nNothing is wrong with them."
    )


def test_a_line_that_can_not_be_read(data):
    with open(data / "prompt.json", "a", encoding="utf-8") as file:
        file.write("{broken\n")
    report = check(open_source(data), resolution=64)
    found = only(report)
    assert not report.ok
    assert (found.level, found.kind, found.names) == ("error", "record", ("number 4",))
    assert "prompt.json, line 5 is no JSON" in found.sentence


@pytest.mark.parametrize("role", ["target", "source"])
def test_a_missing_file_with_its_line(data, role):
    (data / role / "2.png").unlink()
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.names) == ("error", "missing", ("target/2.png",))
    assert "prompt.json, line 3" in found.sentence
    assert f"{role}/2.png" in found.sentence


@pytest.mark.parametrize("role", ["target", "source"])
def test_a_damaged_picture(data, role):
    path = data / role / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.names) == ("error", "damaged", ("target/2.png",))
    assert "damaged or of an unknown kind" in found.sentence


def test_a_pair_without_a_hint(data):
    append(data, target="target/0.png", prompt="a")
    report = check(open_source(data), resolution=64)
    assert ("no hint", "error") in [(f.kind, f.level) for f in report.findings]


def test_made_hints_stand_in_for_missing_ones(tmp_path):
    write_picture(picture(0), tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a", encoding="utf-8")
    report = check(open_source(tmp_path), resolution=64, hints=lambda target: 255 - target)
    assert report.ok
    assert "no hint" not in kinds(report)


def test_hints_are_made_by_one_thread_at_a_time():
    inside: list[int] = []

    def maker(target: Picture) -> Picture:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.002)
        inside.pop()
        return 255 - target

    assert check(unhinted(CirclePairs(24, 64)), resolution=64, hints=maker).ok


@pytest.mark.parametrize("wrong", [lambda _: 1 / 0, lambda target: target / 255])
def test_a_function_that_makes_no_hints(data, wrong):
    found = only(check(unhinted(open_source(data)), resolution=64, hints=wrong))
    assert (found.level, found.kind, found.count) == ("error", "not made", 4)
    assert "division by zero" in found.sentence or "expected uint8" in found.sentence


def test_a_hint_of_another_aspect():
    found = only(one(hint=line_hint(0, 64, 96)))
    assert (found.level, found.kind) == ("error", "aspect")
    assert "96x64 for 64x64" in found.sentence


def test_a_stretched_hint():
    found = only(one(hint=line_hint(0, 64, 67)))
    assert (found.level, found.kind) == ("warning", "stretched")


def test_a_hint_of_half_the_size_is_no_finding():
    assert not one(picture(0, 129, 131), line_hint(0, 64, 65)).findings


def test_a_hint_that_is_the_target():
    report = one(hint=picture(0))
    assert kinds(report) == ["hint is target"]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_hint_of_one_colour(value):
    hint = np.full((64, 64, 3), value, np.uint8)
    hint[0, 0] = 200  # a pixel of dirt doesn't matter
    assert only(one(hint=hint)).kind == "flat"


def test_a_mask_of_zeros_and_ones():
    hint = (line_hint(0) > 0).astype(np.uint8)
    found = only(one(hint=hint))
    assert found.kind == "unscaled"
    assert "multiply masks with 255" in found.sentence


def test_a_dark_hint():
    assert only(one(hint=line_hint(0) // 6)).kind == "dim"


def test_a_hint_that_was_brought_to_minus_one_to_one():
    hint = (line_hint(0) / 255 * 0.5 + 0.5) * 255
    assert only(one(hint=hint.astype(np.uint8))).kind == "half range"


def test_inverted_lines():
    found = only(one(hint=255 - line_hint(0)))
    assert found.kind == "inverted"
    assert "want white on black" in found.sentence


def test_a_white_mask_with_a_hole_is_not_inverted():
    hint = np.full((64, 64, 3), 255, np.uint8)
    hint[20:44, 20:44] = 0
    assert not one(hint=hint).findings


def test_small_pictures():
    pair = Pair("p", "a", held_picture(picture(0), "t"), held_picture(line_hint(0), "h"))
    found = only(check(ListedPairs([pair]), resolution=128))
    assert (found.level, found.kind) == ("warning", "small")


def test_pictures_of_which_much_is_cut_unless_there_are_buckets():
    wide = Pair(
        "p", "a", held_picture(picture(0, 64, 128), "t"), held_picture(line_hint(0, 64, 128), "h")
    )
    assert only(check(ListedPairs([wide]), resolution=64)).kind == "cut"
    sizes = ((64, 64), (64, 128))
    assert not check(ListedPairs([wide]), resolution=64, buckets=sizes).findings


@pytest.mark.parametrize("caption", ["", " \n"])
def test_empty_captions(caption):
    assert only(one(prompt=caption)).kind == "no caption"


def test_pairs_that_are_there_twice(data):
    append(data, source="source/1.png", target="target/1.png", prompt="again")
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.names) == ("warning", "twice", ("target/1.png",))


def test_twins_are_found_in_files_of_another_kind(data):
    write_picture(picture(1), data / "target" / "x.webp")
    Image.fromarray(picture(1)).save(data / "target" / "x.bmp")
    Image.fromarray(line_hint(1)).save(data / "source" / "x.bmp")
    append(data, source="source/x.bmp", target="target/x.bmp", prompt="again")
    assert only(check(open_source(data), resolution=64)).kind == "twice"


def test_a_target_with_two_hints(data):
    write_picture(255 - picture(7), data / "source" / "x.png")
    append(data, source="source/x.png", target="target/1.png", prompt="again")
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.count) == ("note", "same target", 1)


def test_one_hint_for_several_targets(data):
    append(data, source="source/1.png", target="target/x.png", prompt="other")
    write_picture(picture(8), data / "target" / "x.png")
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.names) == ("warning", "same hint", ("target/x.png",))


def swapped(source: Source, hints: Source, shift: int) -> ListedPairs:
    """Targets and prompts of a source, each with the hint of another pair."""
    count = len(source)
    return ListedPairs(
        [replace(source[n], hint=hints[(n + shift) % count].hint) for n in range(count)]
    )


def edges(numbers: Sequence[int]) -> ListedPairs:
    """Blobs and their Canny edges."""
    pairs = []
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        target = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC)
        hint = np.repeat(cv2.Canny(target, 100, 200)[..., None], 3, axis=-1)
        pairs.append(Pair(str(number), "a", held_picture(target, "t"), held_picture(hint, "h")))
    return ListedPairs(pairs)


@pytest.mark.parametrize("source", [CirclePairs(24, 64), edges(range(24))], ids=["circle", "edge"])
def test_hints_in_another_order(source):
    assert "mismatched" not in kinds(check(source, resolution=64))
    for shift in range(1, 4):
        found = only(check(swapped(source, source, shift), resolution=64))
        assert (found.level, found.kind, found.count) == ("warning", "mismatched", 24)


def test_hints_of_other_pictures():
    for seed in range(1, 7):  # by chance, some of these fit a little better than the others
        other = swapped(CirclePairs(24, 64), CirclePairs(24, 64, seed=seed), 0)
        assert only(check(other, resolution=64)).kind == "mismatched"


def test_files_without_a_partner(tmp_path):
    for number in range(2):
        write_picture(picture(number), tmp_path / f"{number}.png")
        write_picture(line_hint(number), tmp_path / "hints" / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a", encoding="utf-8")
    (tmp_path / "1.png").unlink()
    found = only(check(open_source(tmp_path), resolution=64))
    assert (found.kind, found.count) == ("stray", 2)
    assert "1.png has no target" in found.names[0]


def test_targets_without_colours():
    grey = np.repeat(picture(0)[..., :1], 3, axis=-1)
    found = only(one(grey))
    assert (found.level, found.kind) == ("note", "grey")


@pytest.mark.parametrize("role", ["target", "source"])
def test_transparent_pictures(data, role):
    path = data / role / "0.png"
    alpha = np.full((64, 64, 1), 255, np.uint8)
    alpha[:5] = 0
    Image.fromarray(np.dstack([np.array(Image.open(path)), alpha])).save(path)
    found = only(check(open_source(data), resolution=64))
    assert (found.level, found.kind, found.count) == ("note", "transparent", 1)


def test_every_kind_of_finding_has_a_test_here():
    text = Path(__file__).read_text(encoding="utf-8")
    missing = [kind for kind in KINDS if f'"{kind}"' not in text]
    assert not missing


def test_few_pairs_are_named_and_errors_come_first(tmp_path):
    data = write_prompt_json(tmp_path, 30)
    for number in range(25):
        (data / "target" / f"{number}.png").unlink()
    write_picture(255 - line_hint(27), data / "source" / "27.png")
    report = check(open_source(data), resolution=64)
    assert kinds(report) == ["missing", "inverted"]
    assert report.findings[0].count == 25
    assert len(report.findings[0].names) == 10
    first, error, warning = report.summary().splitlines()
    assert first.startswith("30 pairs, all of them looked at.")
    assert error.startswith("error: 25 pairs without a file that should be there. The first: there")
    assert error.endswith("target/9.png, ...)")
    assert warning.startswith("warning: 1 pair whose hint has black lines on white")


def test_names_are_one_line_each(tmp_path):
    record = {"target": "a\nb\0.png", "prompt": "a"}
    (tmp_path / "prompt.json").write_text(json.dumps(record), encoding="utf-8")
    report = check(open_source(tmp_path), resolution=64)
    assert report.findings[0].names == ("a\\nb\\x00.png",)
    assert len(report.summary().splitlines()) == 3


def test_a_part_of_the_pairs_may_do(data):
    told = []
    report = check(
        open_source(data), resolution=64, limit=3, progress=lambda *done: told.append(done)
    )
    assert (report.pairs, report.checked) == (4, 3)
    assert "3 of them looked at" in report.summary()
    assert told == [(3, 3)]
