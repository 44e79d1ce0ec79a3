"""Sampling without a host: seeds, windows, guidance, schedulers, and what is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from controlnet_pack.cldm_core import TINY, CldmError, ControlledUNet, ControlNet, add_control
from controlnet_pack.cldm_core.pipeline import (
    SCHEDULERS,
    Control,
    Pipeline,
    Settings,
    make_scheduler,
    to_hint,
)

SMALL = Settings(steps=3, width=64, height=48)


class Nearest:
    """An autoencoder that needs no weights."""

    def decode(self, latents: torch.Tensor, /) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) / 4


def encode_text(prompts: Sequence[str]) -> torch.Tensor:
    return torch.stack([torch.full((4, 128), (len(prompt) % 7) / 7) for prompt in prompts])


class Counting(torch.nn.Module):
    """Counts the forward calls of a net that it stands in for."""

    def __init__(self, net: ControlNet) -> None:
        super().__init__()
        self.net, self.calls, self.encodings = net, 0, 0
        self.zero_convs = net.zero_convs

    def encode_hint(self, hint: torch.Tensor) -> torch.Tensor:
        self.encodings += 1
        return self.net.encode_hint(hint)

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return self.net(*args)


@pytest.fixture(scope="module")
def parts() -> tuple[Pipeline, ControlNet]:
    torch.manual_seed(1)
    unet = ControlledUNet(TINY)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    net = add_control(unet)
    for key, parameter in net.named_parameters():
        if "zero_convs" in key or "block_out" in key or ".14." in key:
            torch.nn.init.normal_(parameter, std=0.1)
    return Pipeline(unet.requires_grad_(False), Nearest(), encode_text), net.requires_grad_(False)


HINT = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(2))
Make = Callable[..., Control]


def test_a_picture_does_not_depend_on_its_batch(parts: tuple[Pipeline, ControlNet]) -> None:
    pipeline, net = parts
    control = Control(net, HINT)
    many = pipeline("cat", [control], Settings(**{**vars(SMALL), "count": 3, "seed": 5}))
    one = pipeline("cat", [control], Settings(**{**vars(SMALL), "seed": 6}))
    assert many.shape == (3, 48, 64, 3)
    assert many.dtype == np.uint8
    assert np.abs(many[1].astype(int) - one[0]).max() <= 1  # float rounding of another batch size
    assert not np.array_equal(many[0], many[1])


def test_strength_0_and_an_empty_window_are_no_control(parts: tuple[Pipeline, ControlNet]) -> None:
    pipeline, net = parts
    plain = pipeline("cat", (), SMALL)
    assert np.array_equal(pipeline("cat", [Control(net, HINT, strength=0)], SMALL), plain)
    assert np.array_equal(pipeline("cat", [Control(net, HINT, start=0.9)], SMALL), plain)
    assert not np.array_equal(pipeline("cat", [Control(net, HINT)], SMALL), plain)


def test_the_net_runs_in_its_window_only_and_encodes_its_hint_once(
    parts: tuple[Pipeline, ControlNet],
) -> None:
    pipeline, net = parts
    settings = Settings(steps=4, width=64, height=48)
    for options, calls in (
        ({}, 8),
        ({"end": 0.5}, 4),
        ({"start": 0.5}, 4),
        ({"end": 0.0}, 0),
        ({"start": 1.0}, 0),
        ({"start": 0.3, "end": 0.6}, 2),
        ({"guess_mode": True}, 4),
    ):
        counting = Counting(net)
        pipeline("cat", [Control(counting, HINT, **options)], settings)
        assert (counting.calls, counting.encodings) == (calls, 1), options
    counting = Counting(net)
    pipeline("cat", [Control(counting, HINT)], Settings(**{**vars(settings), "guidance": 1.0}))
    assert counting.calls == 4


def test_two_controls_add_up_in_any_order(parts: tuple[Pipeline, ControlNet]) -> None:
    pipeline, net = parts
    a, b = Control(net, HINT, 0.5), Control(net, 1 - HINT, 0.7)
    first, second = pipeline("cat", [a, b], SMALL), pipeline("cat", [b, a], SMALL)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, pipeline("cat", [a], SMALL))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples_and_repeats(parts: tuple[Pipeline, ControlNet], name: str) -> None:
    settings = Settings(**{**vars(SMALL), "scheduler": name})
    first = parts[0]("cat", (), settings)
    assert np.array_equal(first, parts[0]("cat", (), settings))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_gives_the_same_picture_in_every_batch(
    parts: tuple[Pipeline, ControlNet], name: str
) -> None:
    settings = {**vars(SMALL), "scheduler": name}
    many = parts[0]("cat", (), Settings(**{**settings, "seed": 5, "count": 3}))
    one = parts[0]("cat", (), Settings(**{**settings, "seed": 6}))
    assert np.abs(many[1].astype(int) - one[0]).max() <= 1


def test_progress_is_told(parts: tuple[Pipeline, ControlNet]) -> None:
    told = []
    parts[0]("cat", (), SMALL, progress=lambda step, steps: told.append((step, steps)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("prompt", "changes", "sentence"),
    [
        ("cat", {"width": 60}, "60x48: both sides must be multiples of 8"),
        ("cat", {"width": 0}, "0x48: both sides must be multiples of 8, at least 8"),
        ("cat", {"height": -64}, "64x-64: both sides must be multiples of 8, at least 8"),
        ("cat", {"steps": 0}, "at least one of each"),
        ("cat", {"count": 0}, "at least one of each"),
        ("cat", {"steps": 1000}, "1000 steps were asked for: the model was trained on 1000"),
        ("cat", {"guidance": math.nan}, "The guidance is nan"),
        ("cat", {"seed": -1}, "The seeds start at -1"),
        ("cat", {"seed": 2**64}, "The seeds start at 18446744073709551616"),
        ("cat", {"width": 128}, "The hint is 64x48 and the picture 128x48"),
        (["a", "b"], {"count": 3}, "2 prompts were given for 3 pictures"),
        ("cat", {"scheduler": "heun2000"}, "choose one of ddim, euler"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    parts: tuple[Pipeline, ControlNet], prompt: str, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CldmError, match=sentence):
        parts[0](prompt, [Control(parts[1], HINT)], Settings(**{**vars(SMALL), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hint": HINT[0]}, r"The hint has shape \(3, 48, 64\), expected \(B, channels"),
        ({"strength": math.nan}, "The strength is nan, expected a finite number"),
        ({"strength": math.inf}, "The strength is inf, expected a finite number"),
        ({"start": 0.6, "end": 0.4}, "starts at 0.6 and ends at 0.4, expected shares"),
        ({"start": -0.1}, "starts at -0.1 and ends at 1.0, expected shares"),
        ({"end": 20}, "starts at 0.0 and ends at 20, expected shares"),
        ({"end": math.nan}, "ends at nan, expected shares"),
    ],
)
def test_controls_that_do_not_fit_are_refused(
    parts: tuple[Pipeline, ControlNet], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CldmError, match=sentence):
        Control(**{"net": parts[1], "hint": HINT, **changes})


def test_the_last_seed_and_the_most_steps_are_taken(parts: tuple[Pipeline, ControlNet]) -> None:
    one = Settings(**{**vars(SMALL), "steps": 1, "seed": 2**64 - 1})
    assert parts[0]("cat", (), one).shape == (1, 48, 64, 3)
    for name in SCHEDULERS:
        scheduler = make_scheduler(name, parts[0].schedule, "eps")
        scheduler.set_timesteps(parts[0].schedule.timesteps - 1)
        assert len(scheduler.timesteps) == parts[0].schedule.timesteps - 1


def test_the_prediction_is_the_nets_own_unless_another_is_given(
    parts: tuple[Pipeline, ControlNet],
) -> None:
    eps = parts[0]
    unet = ControlledUNet(replace(TINY, prediction="v"))
    unet.load_state_dict(eps.unet.state_dict())
    v = Pipeline(unet, eps.autoencoder, eps.encode_text)
    drawn = [model("cat", (), SMALL) for model in (eps, v, replace(eps, prediction="v"))]
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[1], drawn[2])
    assert np.array_equal(replace(v, prediction="eps")("cat", (), SMALL), drawn[0])


def test_v_prediction_reaches_the_scheduler(parts: tuple[Pipeline, ControlNet]) -> None:
    scheduler = make_scheduler("ddim", parts[0].schedule, "v")
    assert scheduler.config.prediction_type == "v_prediction"
    expected = parts[0].schedule.alphas_cumprod()
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), expected, rtol=1e-5, atol=0)


def test_pictures_become_hints() -> None:
    picture = np.arange(2 * 8 * 16 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    hint = to_hint(picture)
    assert hint.shape == (2, 3, 8, 16)
    assert hint[1, 2, 3, 4] == picture[1, 3, 4, 2] / np.float32(255)
