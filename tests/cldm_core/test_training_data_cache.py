"""What is computed once: found again, renewed when it should be, and whole or not there."""

import errno
import functools
import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from controlnet_pack.annotators import Param, Weights, canny
from controlnet_pack.cldm_core.errors import CldmError
from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.training import cache as cache_module
from controlnet_pack.cldm_core.training.batches import Batches
from controlnet_pack.cldm_core.training.cache import Cache
from controlnet_pack.cldm_core.training.circles import CirclePairs
from controlnet_pack.cldm_core.training.made_hints import maker_key
from controlnet_pack.cldm_core.training.sources import open_source

from .training_pairs import ToyEncoders, picture, unhinted, write_prompt_json

COUNT = 4


@pytest.fixture
def data(tmp_path) -> Path:
    return write_prompt_json(tmp_path / "data", COUNT)


def epoch(data: Path, folder: Path, encoders: ToyEncoders, **settings):
    """All batches of the first epoch, by name of the pair."""
    settings = {"batch_size": 1, "resolution": 64, "seed": 1, "drop_prompt": 0, **settings}
    source = open_source(data)
    if "hints" in settings:
        source = unhinted(source)
    found = Batches(source, encoders, cache=folder, **settings)
    made = [found[index] for index in range(found.per_epoch)]
    return {batch.names[0]: batch for batch in made}


def test_what_was_encoded_is_not_encoded_again(data, tmp_path):
    first, second = ToyEncoders(), ToyEncoders()
    made = epoch(data, tmp_path / "cache", first)
    kept = epoch(data, tmp_path / "cache", second)
    assert first.pictures == len(first.prompts) == COUNT
    assert second.pictures == len(second.prompts) == 0
    for name, batch in made.items():
        assert torch.equal(batch.latents, kept[name].latents)
        assert torch.equal(batch.context, kept[name].context)


def test_the_cache_is_safetensors_with_nothing_left_half(data, tmp_path):
    epoch(data, tmp_path / "cache", ToyEncoders())
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors"}
    assert len(files) == 2 * COUNT
    latents = [load_file(path) for path in files if "latents" in path.parts]
    assert all(entry["latents"].shape == (4, 8, 8) for entry in latents)


def test_a_changed_picture_is_noticed(data, tmp_path):
    before = epoch(data, tmp_path / "cache", ToyEncoders())
    write_picture(picture(9), data / "target" / "2.png")
    encoders = ToyEncoders()
    after = epoch(data, tmp_path / "cache", encoders)
    assert encoders.pictures == 1
    same = {name: torch.equal(before[name].latents, after[name].latents) for name in before}
    assert same == {name: name != "target/2.png" for name in before}


def test_a_picture_of_another_time_is_encoded_anew(data, tmp_path):
    epoch(data, tmp_path / "cache", ToyEncoders())
    os.utime(data / "target" / "2.png", (1, 1))
    encoders = ToyEncoders()
    epoch(data, tmp_path / "cache", encoders)
    assert encoders.pictures == 1


@pytest.mark.parametrize(
    "change",
    [
        {"encoders": ToyEncoders("other")},
        {"resolution": 32},
        {"crop": "random", "resolution": (64, 32)},
    ],
)
def test_other_models_sizes_and_crops_are_other_entries(data, tmp_path, change):
    epoch(data, tmp_path / "cache", ToyEncoders())
    encoders = ToyEncoders()
    change = {"encoders": encoders, **change}
    epoch(data, tmp_path / "cache", **change)
    assert change["encoders"].pictures == COUNT


def test_a_new_prompt_is_encoded_alone(data, tmp_path):
    epoch(data, tmp_path / "cache", ToyEncoders())
    table = data / "prompt.json"
    table.write_text(table.read_text().replace("picture 1", "another"), encoding="utf-8")
    encoders = ToyEncoders()
    epoch(data, tmp_path / "cache", encoders)
    assert encoders.prompts == ["another"]
    assert encoders.pictures == 0


def test_embeddings_are_kept_by_size_only_where_they_depend_on_it(data, tmp_path):
    write_picture(picture(1, 128, 128), data / "target" / "1.png")
    table = data / "prompt.json"
    prompts = table.read_text()
    for number in range(COUNT):
        prompts = prompts.replace(f"picture {number}", "one prompt")
    table.write_text(prompts, encoding="utf-8")
    plain, sized = ToyEncoders(), ToyEncoders("sdxl", sized=True)
    epoch(data, tmp_path / "cache", plain)
    epoch(data, tmp_path / "cache", sized)
    assert len(plain.prompts) == 1
    assert len(sized.prompts) == 2


def test_a_damaged_entry_is_made_anew(data, tmp_path, caplog):
    made = epoch(data, tmp_path / "cache", ToyEncoders())
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    encoders = ToyEncoders()
    again = epoch(data, tmp_path / "cache", encoders)
    assert encoders.pictures == len(encoders.prompts) == COUNT
    assert "is made anew" in caplog.text
    for name, batch in made.items():
        assert torch.equal(batch.latents, again[name].latents)


def test_an_unfinished_file_is_no_entry(data, tmp_path, monkeypatch):
    """A process that is killed while it writes leaves a temporary file, which nobody reads."""

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            epoch(data, tmp_path / "cache", ToyEncoders())
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == [".part"]
    encoders = ToyEncoders()
    epoch(data, tmp_path / "cache", encoders)
    assert encoders.pictures == COUNT


def test_a_full_disk_is_a_sentence(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.Path, "write_bytes", full)
    with pytest.raises(CldmError, match=r"No space left on device.*make room"):
        epoch(data, tmp_path / "cache", ToyEncoders())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_kinds_may_be_left_out(data, tmp_path):
    epoch(data, Cache(tmp_path / "cache", without=["texts"]), ToyEncoders())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["latents"]


@pytest.mark.parametrize("made", [False, True])
def test_without_a_cache_everything_is_the_same(tmp_path, made):
    settings = {"batch_size": 2, "resolution": (64, 32), "seed": 1, "flip": True, "crop": "random"}
    source = CirclePairs(4, 64)
    if made:
        source, settings["hints"] = unhinted(source), inverted
    plain = Batches(source, ToyEncoders(), **settings)
    cached = Batches(source, ToyEncoders(), **settings, cache=tmp_path)
    for index in range(20):  # ten epochs: each pair is seen mirrored, too, and in all its crops
        for name in ("latents", "hint", "context"):
            assert torch.equal(getattr(plain[index], name), getattr(cached[index], name))


calls: list[tuple[int, ...]] = []


def inverted(target: np.ndarray, gain: int = 1) -> np.ndarray:
    calls.append(target.shape)
    return 255 - target // gain


def test_made_hints_are_kept_by_function_and_settings(data, tmp_path):
    hints = []
    for maker, made in (
        (inverted, COUNT),
        (inverted, 0),
        (functools.partial(inverted, gain=2), COUNT),
        (functools.partial(inverted, gain=2), 0),
        (functools.partial(inverted, gain=3), COUNT),
        (lambda target: inverted(target), COUNT),
        (lambda target: inverted(target), COUNT),
    ):
        calls.clear()
        found = epoch(data, tmp_path / "cache", ToyEncoders(), hints=maker)
        assert len(calls) == made
        hints.append(found["target/1.png"].hint)
    assert torch.equal(hints[0], hints[1])
    assert torch.equal(hints[2], hints[3])
    assert not torch.equal(hints[1], hints[2])


def test_a_damaged_made_hint_is_made_anew(data, tmp_path):
    made = epoch(data, tmp_path / "cache", ToyEncoders(), hints=inverted)
    for path in (tmp_path / "cache").rglob("*.png"):
        path.write_bytes(b"no picture")
    again = epoch(data, tmp_path / "cache", ToyEncoders(), hints=inverted)
    for name, batch in made.items():
        assert torch.equal(batch.hint, again[name].hint)


class Annotator:
    """As the records of the pack's annotators."""

    name = "inverted"
    run = staticmethod(inverted)

    def __call__(self, target):
        return inverted(target)


def test_functions_and_annotators_have_keys_and_what_hides_its_state_has_none():
    state = 3
    assert maker_key(inverted) == maker_key(inverted)
    assert maker_key(Annotator()).startswith(f"{__name__}.Annotator:inverted:")
    assert maker_key(functools.partial(Annotator(), gain=2)).endswith("[('gain', 2)])")
    assert maker_key(functools.partial(inverted, gain=object())) is None
    assert maker_key(lambda target: target + state) is None
    assert maker_key("abc".upper) is None
    named = Annotator()
    named.key = "mine"
    assert maker_key(named) == "mine"


def test_annotators_with_other_settings_or_weights_have_other_keys():
    harder = {**canny.params, "low_threshold": Param(10, 0, 255, "")}
    weights = Weights("me/mine", "a.pth", "main", None, "ab12", "MIT", True)
    records = [
        canny,
        replace(canny, resolution=64),
        replace(canny, params=harder),
        replace(canny, weights=(weights,)),
        replace(canny, weights=(replace(weights, sha256="cd34"),)),
    ]
    assert len({maker_key(record) for record in records}) == len(records)
    assert maker_key(replace(canny, description="Other words.")) == maker_key(canny)


def test_a_filled_cache_needs_no_models(tmp_path):
    settings = {
        "batch_size": 2,
        "resolution": 32,
        "seed": 1,
        "flip": True,
        "crop": "random",
        "cache": tmp_path,
        "hints": inverted,
    }
    source, told = unhinted(CirclePairs(4, 64, seed=1)), []
    for rank in (0, 1):
        part = Batches(source, ToyEncoders(), **settings, rank=rank, world=2)
        part.fill_cache(lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)] * 2
    calls.clear()
    encoders = ToyEncoders()
    data = Batches(source, encoders, **settings)
    for _ in itertools.islice(data.iterate(), 20):
        pass
    assert encoders.pictures == len(encoders.prompts) == len(calls) == 0


def test_without_a_cache_there_is_none_to_fill():
    data = Batches(CirclePairs(2, 64), ToyEncoders(), batch_size=1, resolution=32, seed=1)
    with pytest.raises(CldmError, match="cache is none, but the models that encode go before"):
        data.fill_cache()
