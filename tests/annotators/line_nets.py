"""Seeded weights and pictures of the line and edge tests; the reference had the same."""

import importlib
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

NETS = {
    "hed": "HED",
    "lineart": "Lineart",
    "lineart_anime": "LineartAnime",
    "manga_line": "MangaLine",
    "mlsd": "MLSD",
    "pidinet": "PiDiNet",
    "teed": "TEED",
}
"""The classes in annotators.nets."""

GAINS = {"pidinet": 0.78, "manga_line": 0.55}
"""Smaller weights where a deep net's values would explode."""


def empty(name: str) -> nn.Module:
    """The network without values, in training mode."""
    module = importlib.import_module(f"controlnet_pack.annotators.nets.{name}")
    with torch.device("meta"):
        net: nn.Module = getattr(module, NETS[name])()
    return net


@cache
def weights(name: str) -> dict[str, Tensor]:
    """The network's seeded weights."""
    return weights_of(name, shapes_of(empty(name)))


def weights_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes that depend only on their names and on the net's `name`."""
    return {key: _tensor(key, shape, GAINS.get(name, 1.0)) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...], gain: float) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, np.float32)
    if key.endswith("running_var"):
        values = 0.5 + values * values
    elif key == "norm":
        values = 120 + 10 * values
    elif len(shape) > 1:
        values = values * (gain * (2 / np.prod(shape[1:])) ** 0.5)
    elif key.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(np.asarray(values, np.float32))


def shapes_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8: blocks of 8 pixels with noise, the same everywhere."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 200, (height // 8, width // 8, channels))
    noise = rng.integers(0, 56, (height, width, channels))
    return (blocks.repeat(8, axis=0).repeat(8, axis=1) + noise).astype(np.uint8)


def soft_map(height: int, width: int) -> np.ndarray:
    """(H, W) in [0, 1]: soft ridges in many directions, the same everywhere."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ridges = [np.cos((x * a + y * b) / 19) ** 40 for a, b in ((1, 0), (1, 2), (-2, 1), (0, 1))]
    return np.max(ridges, axis=0)
