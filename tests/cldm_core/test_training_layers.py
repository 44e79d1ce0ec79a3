"""Which layers a run trains in."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from controlnet_pack.cldm_core.training import layers, make_trainable
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.trainables import KINDS

from .training_cases import kept, unet_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIGA = 10**9


def accelerator_on(device, processes=1):
    return SimpleNamespace(device=device, autocast=nullcontext, num_processes=processes)


def config_of(**settings):
    return TrainConfig(batch_size=2, resolution=64, **settings)


@pytest.fixture
def trainable():
    return make_trainable("controlnet", unet_of())


def is_lean(trainable):
    return any("lean_layers" in type(module).__module__ for module in trainable.unet.modules())


@pytest.mark.parametrize(
    ("named", "device", "room", "lean"),
    [
        ("auto", CPU, True, True),
        ("auto", CUDA, True, False),
        ("auto", CUDA, False, True),
        ("lean", CUDA, True, True),
        ("plain", CPU, False, False),
    ],
)
def test_a_run_has_the_layers_that_are_named(named, device, room, lean, trainable, monkeypatch):
    monkeypatch.setattr(layers, "has_room", lambda *_: room)
    found = layers.in_layers(trainable, config_of(layers=named), accelerator_on(device))
    assert is_lean(found) == lean
    assert [*map(id, found.parameters())] == [*map(id, trainable.parameters())]


def test_checkpointing_keeps_its_layers(monkeypatch, trainable):
    monkeypatch.setattr(layers, "has_room", lambda *_: True)
    config = config_of(checkpointing=True)
    assert is_lean(layers.in_layers(trainable, config, accelerator_on(CUDA)))


@pytest.fixture
def card(monkeypatch):
    """A GPU of 10 GB that has 1 GB in use; a step takes `step` of it, or more than there is."""
    facts = SimpleNamespace(step=0, full=False)

    def try_step(*_):
        if facts.full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(layers, "try_step", try_step)
    for name, found in (
        ("empty_cache", lambda: None),
        ("reset_peak_memory_stats", lambda _: None),
        ("mem_get_info", lambda _: (9 * GIGA, 10 * GIGA)),
        ("memory_allocated", lambda _: GIGA),
        ("max_memory_allocated", lambda _: GIGA + facts.step),
    ):
        monkeypatch.setattr(torch.cuda, name, found)
    return facts


def test_a_fifth_of_the_free_memory_stays_free(card, trainable):
    state = 8 * sum(weight.numel() for weight in trainable.parameters())
    for card.step, fits in ((int(7.2 * GIGA) - state, True), (int(7.2 * GIGA) - state + 1, False)):
        assert layers.has_room(trainable, config_of(), accelerator_on(CPU)) == fits


def test_a_step_that_the_memory_is_too_small_for_has_no_room(card, trainable):
    card.full = True
    assert not layers.has_room(trainable, config_of(), accelerator_on(CPU))


@pytest.mark.parametrize(
    ("settings", "processes", "each"),
    [
        ({}, 1, 8),
        ({"optimizer": "adamw8bit"}, 1, 2),
        ({"accumulation": 3, "ema": 0.9}, 1, 16),
        ({}, 2, 12),
    ],
)
def test_what_a_first_step_does_not_show_is_reckoned(settings, processes, each, trainable):
    found = layers.bytes_between_steps(trainable, config_of(**settings), processes)
    assert found == each * sum(weight.numel() for weight in trainable.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sd_locked", [True, False], ids=["locked", "unlocked"])
def test_a_tried_step_is_a_whole_one_and_leaves_nothing_behind(kind, sd_locked):
    trainable = make_trainable(kind, unet_of(), sd_locked=sd_locked)
    seen = set()
    for number, weight in enumerate(trainable.parameters()):
        weight.register_hook(lambda _, number=number: seen.add(number))
    before = [weight.clone() for weight in trainable.parameters()]
    drawn = torch.random.get_rng_state()
    with kept(trainable.unet, trainable.net) as saved:
        layers.try_step(trainable, config_of(), CPU)
    assert saved.bytes > 0
    assert seen == set(range(len(before)))
    assert all(weight.grad is None for weight in trainable.parameters())
    assert all(map(torch.equal, before, trainable.parameters()))
    assert torch.equal(drawn, torch.random.get_rng_state())
