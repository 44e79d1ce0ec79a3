"""Edge and line networks: the public checkpoints' keys, and the reference's outputs and hints."""

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import ANNOTATORS, _lineart

from . import line_nets

DATA = Path(__file__).parent / "data"
IN_UNITS = {
    "lineart": lambda pixels: pixels / 255,
    "lineart_anime": lambda pixels: pixels / 127.5 - 1,
    "pidinet": lambda pixels: pixels / 255,
}
SIZES = {"lineart_anime": (256, 256)}


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "lines.npz") as arrays:
        return dict(arrays)


@cache
def keys() -> dict[str, dict[str, tuple[int, ...]]]:
    with gzip.open(DATA / "lines_keys.json.gz") as file:
        found = json.load(file)
    return {net: {key: tuple(shape) for key, shape in all_.items()} for net, all_ in found.items()}


@pytest.mark.parametrize("name", line_nets.NETS)
def test_keys_are_the_public_checkpoint_s(name):
    assert line_nets.shapes_of(line_nets.empty(name)) == keys()[name]


@pytest.mark.parametrize("name", line_nets.NETS)
def test_a_batch_gives_the_reference_s_values(name, golden):
    net = line_nets.empty(name)
    net.load_state_dict(line_nets.weights(name), assign=True)
    image = line_nets.picture(*SIZES.get(name, (64, 96)), 1 if name == "manga_line" else 3)
    batch = torch.from_numpy(np.stack([image, image[::-1]])).movedim(-1, 1).float()
    with torch.no_grad():
        output = net.eval()(IN_UNITS.get(name, lambda pixels: pixels)(batch))
    assert output.shape == tuple(golden[f"{name}.shape"])
    expected = golden[f"{name}.values"]
    values = output.flatten().numpy()[:: max(1, output.numel() // 512) | 1]
    assert np.abs(values - expected).max() < 1e-5 * np.abs(expected).max()


def hint(name: str, give, image: np.ndarray | None = None, **settings) -> np.ndarray:
    for record in ANNOTATORS[name].weights:
        give(record, line_nets.weights(name))
    picture = line_nets.picture(64, 128) if image is None else image
    return ANNOTATORS[name](picture, resolution=0, device="cpu", **settings)


def assert_is(hints: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for a few pixels where a network's last digit decides on the level."""
    assert (hints == hints[..., :1]).all()
    assert np.count_nonzero(hints[..., 0] != expected) <= expected.size / 1000


@pytest.mark.parametrize("scribble", [False, True])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", ["hed", "pidinet"])
def test_soft_edges_safe_and_scribble(name, safe, scribble, give, golden):
    found = hint(name, give, safe=safe, scribble=scribble)
    assert_is(found, golden[f"hint.{name}.{safe:d}{scribble:d}"])


@pytest.mark.parametrize("steps", [0, 2, 7])
def test_teed(steps, give, golden):
    assert_is(hint("teed", give, safe_steps=steps), golden[f"hint.teed.{steps}"])


def test_lineart(give, golden):
    assert_is(hint("lineart", give), golden["hint.lineart"])


def test_coarse_lineart_has_its_own_weights(give):
    give(_lineart.FINE, line_nets.weights("lineart"))
    white = line_nets.weights("lineart") | {"model4.1.bias": torch.full((1,), 1e4)}
    give(_lineart.COARSE, white)
    picture = line_nets.picture(64, 64)
    assert not ANNOTATORS["lineart"](picture, resolution=0, device="cpu", coarse=True).any()
    assert ANNOTATORS["lineart"](picture, resolution=0, device="cpu").any()


def test_manga_line(give, golden):
    assert_is(hint("manga_line", give), golden["hint.manga_line"])


def test_mlsd(give, golden):
    assert_is(hint("mlsd", give), golden["hint.mlsd"])
    strict = hint("mlsd", give, score_threshold=0.6, dist_threshold=8.0)
    assert_is(strict, golden["hint.mlsd.strict"])


def test_lineart_anime_and_its_odd_sizes(give, golden):
    image = line_nets.picture(256, 256)
    whole = hint("lineart_anime", give, image)
    assert_is(whole[::4, ::4], golden["hint.lineart_anime"])
    odd = image[:201, :190]
    padded = np.pad(odd, ((0, 55), (0, 66), (0, 0)), mode="edge")
    batch = np.stack([odd, odd[::-1]])
    found = ANNOTATORS["lineart_anime"](batch, resolution=0, device="cpu")
    assert found.shape == (2, 201, 190, 3)
    expected = ANNOTATORS["lineart_anime"](padded, resolution=0, device="cpu")[:201, :190, 0]
    assert_is(found[0], expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hed", {"safe": True, "scribble": True}),
        ("lineart", {}),
        ("mlsd", {}),
        ("pidinet", {"safe": False}),
        ("teed", {}),
    ],
)
def test_odd_sizes(name, settings, give, golden):
    odd = line_nets.picture(64, 128)[:39, :101]
    assert_is(hint(name, give, odd, **settings), golden[f"odd.{name}"])
    tiny = hint(name, give, odd[:1, :1])
    assert tiny.shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["hed", "lineart", "mlsd", "pidinet", "teed"])
def test_a_batch_is_its_pictures(name, give):
    image = line_nets.picture(64, 64)
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    for one, found in zip(batch, hint(name, give, batch), strict=True):
        assert_is(found, hint(name, give, one)[..., 0])


def test_pidinet_is_for_research_only():
    assert "Not for commercial use: table5_pidinet.pth" in ANNOTATORS["pidinet"].about
