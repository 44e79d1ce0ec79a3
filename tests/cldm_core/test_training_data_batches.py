"""Batches: the same whenever they are asked for, by whom, and however many processes there are."""

import itertools
import threading
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch

from controlnet_pack.cldm_core.errors import CldmError, ShapeError
from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.training.batches import Batch, Batches
from controlnet_pack.cldm_core.training.buckets import (
    aspect_buckets,
    merge_small,
    nearest_bucket,
    picture_sizes,
)
from controlnet_pack.cldm_core.training.circles import CirclePairs
from controlnet_pack.cldm_core.training.dataset_writer import write_shards
from controlnet_pack.cldm_core.training.draws import permutation, reals
from controlnet_pack.cldm_core.training.order import Order
from controlnet_pack.cldm_core.training.pairs import Pair, held_picture
from controlnet_pack.cldm_core.training.sources import ListedPairs, hold_out, open_source
from controlnet_pack.cldm_core.training.views import View

from .training_pairs import ToyEncoders, line_hint, picture, unhinted, write_prompt_json

COUNT = 10


@pytest.fixture(scope="module")
def source():
    return ListedPairs([pair(number) for number in range(COUNT)])


def pair(number: int, height: int = 64, width: int = 64) -> Pair:
    return Pair(
        f"pair {number}",
        f"picture {number}",
        held_picture(picture(number, height, width), "target"),
        held_picture(line_hint(number, height, width), "hint"),
    )


def batches(source, encoders=None, **settings) -> Batches:
    settings = {"batch_size": 2, "resolution": 64, "seed": 5, **settings}
    return Batches(source, encoders or ToyEncoders(), **settings)


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.names == other.names
    for name in ("latents", "hint", "context"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.y is None and other.y is None) or torch.equal(one.y, other.y)


def joined(*parts: Batch) -> Batch:
    tensors = [torch.cat([getattr(part, name) for part in parts]) for name in TENSORS]
    return Batch(*tensors, None, tuple(itertools.chain(*(part.names for part in parts))))


TENSORS = ("latents", "hint", "context")
RANDOM = {"flip": True, "crop": "random"}


def test_a_batch_holds_what_the_pairs_hold(source):
    batch = batches(source, drop_prompt=0)[0]
    assert batch.latents.shape == (2, 4, 8, 8)
    assert batch.hint.shape == (2, 3, 64, 64)
    assert batch.context.shape == (2, 3, 2)
    assert batch.y is None
    for row, name in enumerate(batch.names):
        number = int(name.split()[1])
        pixels = torch.from_numpy(picture(number)).permute(2, 0, 1)[None].float() / 127.5 - 1
        assert torch.equal(batch.latents[row], ToyEncoders().latents(pixels)[0])
        hint = torch.from_numpy(line_hint(number)).permute(2, 0, 1)
        assert torch.equal(batch.hint[row], hint / 255)
        assert batch.context[row, 0, 0] == sum(map(ord, f"picture {number}"))


def test_hints_are_in_zero_to_one(source):
    hint = batches(source)[0].hint
    assert hint.dtype == torch.float32
    assert (hint.min(), hint.max()) == (0, 1)


def test_a_batch_goes_to_another_type_and_device(source):
    batch = batches(source, ToyEncoders(sized=True))[0].to("meta", torch.bfloat16)
    for tensor in (batch.latents, batch.hint, batch.context, batch.y):
        assert tensor.dtype == torch.bfloat16
        assert tensor.device.type == "meta"


def test_an_epoch_is_a_permutation_and_the_next_one_another(source):
    data = batches(source)
    names = [[*itertools.chain(*(data[i].names for i in range(e, e + 5)))] for e in (0, 5)]
    assert data.per_epoch == 5
    assert sorted(names[0]) == sorted(names[1]) == sorted(f"pair {n}" for n in range(COUNT))
    assert names[0] != names[1]


def test_another_seed_gives_another_order(source):
    assert batches(source)[0].names != batches(source, seed=6)[0].names


def test_any_batch_can_be_had_at_once(source):
    """Exact resume: batch 17 of a new object is batch 17 of one that has made all before it."""
    data = batches(source, **RANDOM)
    run = [data[index] for index in range(20)]
    assert_equal(batches(source, **RANDOM)[17], run[17])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_change_nothing(source, workers):
    data = batches(source, **RANDOM)
    found = [*itertools.islice(batches(source, workers=workers, **RANDOM).iterate(3), 12)]
    for index, batch in enumerate(found, 3):
        assert_equal(batch, data[index])


def test_as_many_threads_make_batches_as_are_asked_for(source):
    together, asked = threading.Barrier(3, timeout=10), itertools.count()

    class Meeting(ListedPairs):
        def __getitem__(self, index):
            if next(asked) < together.parties:
                together.wait()  # raises where fewer come
            return super().__getitem__(index)

    stream = batches(Meeting(source.pairs), batch_size=1, workers=3).iterate()
    assert next(stream).names
    stream.close()


def test_two_processes_see_the_rows_of_one_with_double_batches(source):
    one = batches(source, batch_size=4, **RANDOM)
    two = [batches(source, batch_size=2, rank=rank, world=2, **RANDOM) for rank in (0, 1)]
    assert one.per_epoch == two[0].per_epoch == 2
    for index in range(6):
        assert_equal(joined(*(part[index] for part in two)), one[index])


def test_half_of_the_prompts_are_dropped():
    few = ListedPairs([pair(number, 16, 16) for number in range(200)])
    data = batches(few, batch_size=200, resolution=16)
    lengths = data[0].context[:, 0, 1]
    assert 80 < (lengths == 0).sum() < 120
    assert not torch.equal(lengths == 0, data[1].context[:, 0, 1] == 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_no_prompts_are_dropped(source, share):
    data = batches(source, batch_size=COUNT, drop_prompt=share)
    dropped = torch.cat([data[index].context[:, 0, 1] for index in range(4)]) == 0
    assert dropped.all() if share else not dropped.any()


def test_dropping_prompts_does_not_change_flips(source):
    kept = batches(source, batch_size=COUNT, drop_prompt=0.0, **RANDOM)[0]
    assert torch.equal(batches(source, batch_size=COUNT, **RANDOM)[0].hint, kept.hint)


def test_target_and_hint_are_mirrored_together():
    same = ListedPairs(
        [
            Pair(str(n), "", held_picture(picture(n), "t"), held_picture(picture(n), "h"))
            for n in range(COUNT)
        ]
    )
    batch = batches(same, batch_size=COUNT, flip=True)[0]
    flipped = 0
    for row, name in enumerate(batch.names):
        hint = batch.hint[row]
        own = torch.from_numpy(picture(int(name))).permute(2, 0, 1) / 255
        assert torch.equal(hint, own) or torch.equal(hint, own.flip(2))
        flipped += not torch.equal(hint, own)
        again = ToyEncoders().latents(hint[None] * 2 - 1)[0]
        assert torch.allclose(batch.latents[row], again, atol=1e-5)
    assert 0 < flipped < COUNT


@pytest.mark.parametrize("crop", ["middle", "random"])
def test_target_and_hint_are_cropped_together(crop):
    pairs = [
        Pair(str(n), "", *(held_picture(picture(n, 64, 160), role) for role in "th"))
        for n in range(4)
    ]
    data = batches(ListedPairs(pairs), batch_size=4, crop=crop)
    places = set()
    for epoch in range(4):
        batch = data[epoch]
        for row, name in enumerate(batch.names):
            again = ToyEncoders().latents(batch.hint[row][None] * 2 - 1)[0]
            assert torch.allclose(batch.latents[row], again, atol=1e-5)
            whole = picture(int(name), 64, 160)
            seen = (batch.hint[row].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
            places |= {x for x in range(97) if np.array_equal(whole[:, x : x + 64], seen)}
    assert places == {48} if crop == "middle" else len(places) > 4


def test_random_crops_come_again_after_four_epochs():
    wide = ListedPairs([pair(0, 64, 640)])
    data = batches(wide, batch_size=1, crop="random")
    found = [data[epoch].latents for epoch in range(8)]
    assert len({latents.numpy().tobytes() for latents in found}) == 4
    for early, late in zip(found[:4], found[4:], strict=True):
        assert torch.equal(early, late)


def test_a_smaller_hint_is_brought_to_its_target():
    target, hint = picture(0, 96, 192), np.zeros((32, 64, 3), np.uint8)
    hint[:, 30:34] = 255
    whole = Pair("a", "", held_picture(target, "t"), held_picture(hint, "h"))
    batch = batches(ListedPairs([whole]), batch_size=1, resolution=96)[0]
    columns = batch.hint[0, 0, 48]
    assert columns.unique().tolist() == [0, 1]  # a mask of two colours stays one
    assert columns.nonzero().flatten().tolist() == [*range(42, 54)]


def test_a_hint_of_another_aspect_is_refused():
    wrong = Pair("a", "", held_picture(picture(0), "t"), held_picture(line_hint(0, 64, 80), "h"))
    with pytest.raises(CldmError, match="The pair a: the hint is 80x64 and the target 64x64"):
        batches(ListedPairs([wrong]), batch_size=1)[0]


def test_hints_are_made_of_the_mirrored_crop():
    def left_half(target):
        made = np.zeros_like(target)
        made[:, : target.shape[1] // 2] = 255
        return made

    wide = unhinted(ListedPairs([pair(number, 64, 100) for number in range(COUNT)]))
    hint = batches(wide, batch_size=COUNT, hints=left_half, **RANDOM)[0].hint
    assert hint[..., :32].eq(1).all()
    assert hint[..., 32:].eq(0).all()


def test_a_function_that_fails_is_named_with_its_pair(source):
    with pytest.raises(CldmError, match=r"pair \d: its hint can't be made\. division by zero"):
        batches(unhinted(source), hints=lambda _: 1 / 0)[0]


@pytest.mark.parametrize(
    "wrong", [lambda p: p / 255, lambda p: p[..., :2], lambda p: p[None], lambda _: "no picture"]
)
def test_what_is_no_hint_is_refused(source, wrong):
    with pytest.raises(CldmError, match=r"pair \d: its hint was made as .*expected uint8"):
        batches(unhinted(source), hints=wrong)[0]


@pytest.mark.parametrize("made", [lambda p: p[..., 0], lambda p: p[::2, ::2, :1]])
def test_grey_hints_and_hints_of_another_resolution_will_do(source, made):
    assert batches(unhinted(source), hints=made)[0].hint.shape == (2, 3, 64, 64)


def test_stored_hints_stay(source):
    assert_equal(batches(source, hints=lambda target: 255 - target)[0], batches(source)[0])


def test_sdxl_is_told_sizes_and_crops():
    wide = ListedPairs([pair(0, 128, 512)])
    batch = batches(wide, ToyEncoders(sized=True), batch_size=1)[0]
    assert batch.y.tolist() == [[128, 512, 0, 96, 64, 64]]  # scaled to 64x256, cut in the middle


def test_a_vanished_file_is_a_sentence_at_its_batch(tmp_path):
    data = batches(open_source(write_prompt_json(tmp_path, 4)))
    run = data.iterate()
    next(run)
    for number in range(4):
        (tmp_path / "target" / f"{number}.png").unlink()
    with pytest.raises(CldmError, match=r"There is no file .*\.png: was it moved or deleted"):
        [*itertools.islice(run, 9)]


def test_processes_share_the_batches_of_shards(tmp_path):
    write_shards(CirclePairs(24, 32), tmp_path, per_shard=6)
    train, held = hold_out(open_source(tmp_path), 4)
    settings = {"resolution": 32, "flip": True}
    one = batches(train, batch_size=4, **settings)
    two = [batches(train, rank=rank, world=2, **settings) for rank in (0, 1)]
    for index in range(7):
        assert_equal(joined(*(part[index] for part in two)), one[index])
    names = {name for index in range(one.per_epoch) for name in one[index].names}
    assert len(names) == 20
    assert not names & {held[number].name for number in range(4)}


# ---- buckets


def test_buckets_hold_about_as_many_pixels():
    found = aspect_buckets(512)
    assert (512, 512) in found
    assert {(w, h) for h, w in found} == {*found}
    for height, width in found:
        assert height % 64 == width % 64 == 0
        assert 0.75 * 512**2 < height * width <= 512**2
        assert max(height, width) <= 2 * min(height, width)


@pytest.mark.parametrize("wrong", [{"step": 12}, {"step": 256}, {"longest": 0.5}])
def test_impossible_buckets_are_refused(wrong):
    with pytest.raises(CldmError, match="don't exist"):
        aspect_buckets(128, **wrong)


def test_a_picture_goes_to_the_nearest_aspect():
    buckets = ((64, 128), (96, 96), (128, 64))
    sizes = np.array([[100, 199], [300, 310], [640, 300], [10, 13], [10, 15]])
    assert nearest_bucket(sizes, buckets).tolist() == [0, 1, 2, 1, 0]


def test_a_bucket_too_small_for_a_batch_joins_its_neighbour():
    buckets = ((64, 128), (96, 96), (128, 64))
    chosen = np.array([0] * 5 + [1] * 2 + [2] * 8)
    assert np.bincount(merge_small(chosen, buckets, 4)).tolist() == [7, 0, 8]
    assert np.bincount(merge_small(chosen, buckets, 20), minlength=3).max() == 15


SHAPES = ((64, 128), (96, 96), (128, 64))


@pytest.fixture(scope="module")
def mixed():
    sizes = [(64, 128), (80, 80), (128, 60), (70, 75)]
    return ListedPairs([pair(number, *sizes[number % 4]) for number in range(24)])


def test_sizes_are_read_once_and_kept(mixed, tmp_path):
    sizes = picture_sizes(mixed, tmp_path)
    assert sizes[:3].tolist() == [[64, 128], [80, 80], [128, 60]]
    assert len([*tmp_path.rglob("*.npz")]) == 1
    assert np.array_equal(picture_sizes(mixed, tmp_path), sizes)


def test_the_size_of_a_picture_that_was_changed_is_read_again(tmp_path):
    source = open_source(write_prompt_json(tmp_path / "data", 2))
    assert picture_sizes(source, tmp_path / "cache").tolist() == [[64, 64], [64, 64]]
    write_picture(picture(0, 64, 128), tmp_path / "data" / "target" / "0.png")
    assert picture_sizes(source, tmp_path / "cache").tolist() == [[64, 128], [64, 64]]


def test_bucketed_batches_are_of_one_size_and_cover_the_data(mixed):
    data = batches(mixed, buckets=SHAPES, batch_size=2)
    found = [data[index] for index in range(data.per_epoch)]
    shapes = [tuple(batch.hint.shape[2:]) for batch in found]
    assert {*shapes} == {*SHAPES}
    assert shapes.count((96, 96)) == 6
    assert shapes[:3] != [shapes[0]] * 3  # they take turns
    assert len({*itertools.chain(*(batch.names for batch in found))}) == 24


def test_bucketed_batches_are_the_same_at_any_time_and_for_two_processes(mixed):
    make = partial(batches, mixed, buckets=SHAPES, **RANDOM)
    one, two = make(batch_size=4), [make(batch_size=2, rank=rank, world=2) for rank in (0, 1)]
    for index in (9, 2, 5):
        assert_equal(joined(*(part[index] for part in two)), one[index])
    assert_equal(make(batch_size=4)[9], one[9])


# ---- order


def test_fewer_pairs_than_a_batch_come_twice():
    rows = Order(3, 8, seed=0)[0]
    assert np.bincount(rows.pairs).tolist() == [3, 3, 2]


def test_what_is_left_over_changes_with_the_epoch():
    order = Order(10, 4, seed=1)
    assert order.per_epoch == 2
    left = [
        {*range(10)} - {*order[2 * epoch].pairs, *order[2 * epoch + 1].pairs} for epoch in range(5)
    ]
    assert all(len(rest) == 2 for rest in left)
    assert len({frozenset(rest) for rest in left}) > 1


def test_shards_are_split_by_rank():
    """In an epoch each of 4 processes reads a quarter of 16 shards, another one in the next."""
    shards = np.repeat(np.arange(16), 50)
    order = Order(800, 8, seed=2, shards=shards)
    read = []
    for epoch in range(2):
        rows = np.stack([order[epoch * 100 + step].pairs for step in range(100)])
        assert len(np.unique(rows)) == 800
        read.append([{*shards[rows[:, 2 * r : 2 * r + 2]].ravel().tolist()} for r in range(4)])
    assert [len(part) for part in read[0]] == [4, 4, 4, 4]
    assert set.union(*read[0]) == {*range(16)}
    assert read[0] != read[1]


def test_a_row_reads_one_shard_after_another():
    shards = np.repeat(np.arange(6), 20)
    order = Order(120, 2, seed=2, shards=shards)
    walked = [int(shards[order[step].pairs[0]]) for step in range(60)]
    changes = sum(a != b for a, b in itertools.pairwise(walked))
    assert changes == 2
    inside = [int(order[step].pairs[0]) for step in range(20)]
    assert inside != sorted(inside)


def test_the_order_of_a_hundred_thousand_pairs_is_small():
    count = 100_000
    tracemalloc.start()
    order = Order(count, 8, seed=1, buckets=np.arange(count) % 5, shards=np.arange(count) // 1000)
    assert order[order.per_epoch - 1].epoch == 0
    assert order[order.per_epoch].epoch == 1
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 5e6  # buckets, shards and two epochs
    assert peak < 10e6


def test_random_numbers_are_the_same_for_good():
    """Recorded: a run must be resumable with a later NumPy, on another machine."""
    assert permutation(8, "epoch", 3, 1).tolist() == PERMUTATION
    assert reals(2, "row", 3, 1, 2).tolist() == pytest.approx(REALS, abs=0)


PERMUTATION = [7, 6, 5, 3, 2, 0, 4, 1]
REALS = [0.7883128436559815, 0.6562302840539217]


# ---- views


def test_a_view_covers_its_size_whatever_the_picture():
    for height, width in itertools.product((30, 64, 65, 127, 300), repeat=2):
        window = View((64, 96), (1.0, 1.0)).window((height, width))
        assert window.of_target(picture(0, height, width)).shape == (64, 96, 3)
        assert window.of_hint(line_hint(0, height, width)).shape == (64, 96, 3)
        assert window.whole[0] == 64 or window.whole[1] == 96


# ---- refused


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"rank": 2, "world": 2}, "process 2 of 2"),
        ({"resolution": 60}, "multiples of 8"),
        ({"buckets": ((64, 60),)}, "multiples of 8"),
        ({"drop_prompt": 1.5}, "share from 0 to 1"),
        ({"crop": "left"}, "expected one of middle, random"),
        ({"seed": -1}, "whole number from 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(source, wrong, told):
    with pytest.raises(CldmError, match=told):
        batches(source, **wrong)


def test_no_pairs_and_no_batch_are_refused(source):
    with pytest.raises(CldmError, match="nothing to train on"):
        batches(ListedPairs([]))
    with pytest.raises(CldmError, match="counted from 0"):
        batches(source)[-1]


def test_latents_of_another_size_or_with_nan_are_refused(source):
    class Small(ToyEncoders):
        def latents(self, pictures):
            return super().latents(pictures)[..., 1:]

    class Overflowing(ToyEncoders):
        def latents(self, pictures):
            return super().latents(pictures) * torch.inf

    with pytest.raises(ShapeError, match=r"latents \(1, 4, 8, 7\) for a picture of 64x64"):
        batches(source, Small())[0]
    with pytest.raises(CldmError, match=r"pair \d: its latents hold NaN.*float16"):
        batches(source, Overflowing())[0]


def test_embeddings_of_several_lengths_are_refused(source):
    class Long(ToyEncoders):
        def texts(self, prompts, sizes):
            return torch.zeros(1, 77 * (1 + len(prompts[0]) % 2), 4), None

    several = ListedPairs(
        [
            Pair("a", prompt, held_picture(picture(0), "t"), held_picture(line_hint(0), "h"))
            for prompt in ("a", "bb")
        ]
    )
    with pytest.raises(ShapeError, match="several shapes"):
        batches(several, Long(), drop_prompt=0)[0]


def test_pictures_on_disk_make_the_same_batches(source, tmp_path):
    for number in range(COUNT):
        write_picture(picture(number), tmp_path / f"{number}.png")
        write_picture(line_hint(number), tmp_path / "hints" / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    stored, held = batches(open_source(tmp_path), **RANDOM)[3], batches(source, **RANDOM)[3]
    for name in TENSORS:
        assert torch.equal(getattr(stored, name), getattr(held, name))
