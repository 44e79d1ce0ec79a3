"""What is done to edge maps after the networks: bit for bit as the reference does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import _mlsd, edges
from controlnet_pack.annotators.nets.mlsd import likeliest

from . import line_nets


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "data" / "lines.npz") as arrays:
        return dict(arrays)


def ridges() -> np.ndarray:
    return edges.grey_levels(torch.from_numpy(line_nets.soft_map(96, 96)))


def unpacked(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits).reshape(96, 96) * np.uint8(255)


@pytest.mark.parametrize(("key", "threshold", "sigma"), [("nms", 127, 3.0), ("nms.other", 60, 1.5)])
def test_thinned_is_the_reference_s_nms(key, threshold, sigma, golden):
    expected = unpacked(golden[key])
    assert expected.any()
    assert np.array_equal(edges.thinned(ridges(), threshold, sigma), expected)


def test_scribbled_is_the_reference_s_scribble(golden):
    expected = unpacked(golden["scribble"])
    assert 0 < expected.mean() < 255
    assert np.array_equal(edges.scribbled(ridges()), expected)


@pytest.mark.parametrize("steps", [2, 5])
def test_safe_step_is_the_reference_s(steps, golden):
    levels = edges.grey_levels(edges.safe_step(torch.from_numpy(line_nets.soft_map(96, 96)), steps))
    assert np.array_equal(levels, golden[f"safe.{steps}"])
    assert len(np.unique(levels)) == steps + 1


def test_sigmoid_of_far_values():
    found = edges.sigmoid(torch.tensor([-1e5, 0, 1e5]))
    assert found.dtype == torch.float64
    assert found.tolist() == [0, 0.5, 1]


def test_padding_repeats_the_edge():
    image = line_nets.picture(64, 64)[None, :63, :62]
    padded = edges.edge_padded(image)
    assert padded.shape == (1, 64, 64, 3)
    assert np.array_equal(padded[:, :63, :62], image)
    assert (padded[:, 63] == padded[:, 62]).all()
    assert (padded[:, :, 62:] == padded[:, :, 61:62]).all()


@pytest.mark.parametrize(("key", "thresholds"), [("all", (0.1, 0.1)), ("some", (0.8, 12.0))])
def test_segments_are_the_reference_s(key, thresholds, golden):
    maps = np.random.default_rng(3).standard_normal((9, 32, 48)).astype(np.float32)
    maps[1:5] *= 9
    batch = torch.from_numpy(np.stack([maps[:, ::-1], maps]))
    _, found = zip(*(part.numpy() for part in likeliest(batch)), strict=True)
    assert np.array_equal(_mlsd.line_ends(*found, *thresholds), golden[f"segments.{key}"])


def test_no_segment_is_no_error():
    nothing = torch.full((1, 9, 32, 32), -100.0)
    (found,) = zip(*(part.numpy() for part in likeliest(nothing)), strict=True)
    assert _mlsd.line_ends(*found, 0.1, 0.1) == []
