"""Networks in the place of those that need a package of their own or are too wide for loops.

What they give depends on what they are given, and on nothing else.
"""

import zlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.annotators import (
    _animal_pose,
    _blazepose,
    _dwpose,
    _face_mesh,
    _openpose,
    _person,
    keeper,
)
from controlnet_pack.annotators.nets import hed, lineart_anime, manga_line

from .pose_scenes import animal_output, simcc_output, yolox_output

KINDS = 4
"""How many scenes a network of poses may see."""


def seed_of(pixels: Any) -> int:
    """Which scene is in the picture."""
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes())


def narrow(patch: pytest.MonkeyPatch) -> None:
    """The wide networks of lines with few channels."""
    patch.setattr(hed, "STAGES", ((3, 8, 1), (8, 8, 1), (8, 8, 1), (8, 8, 1), (8, 8, 1)))
    patch.setattr(lineart_anime, "WIDTHS", (8,) * 8)
    widths = (24, 28, 32, 36, 40)  # its shortcuts tell a doubling by the change of channels
    down = ((1, 24, 1), *((before, after, 1) for before, after in pairwise(widths)))
    patch.setattr(manga_line, "DOWN", down)
    up = ((before, after, 1) for before, after in pairwise(reversed(widths)))
    patch.setattr(manga_line, "UP", tuple(up))


class Maps(nn.Module):
    """Maps of an eighth of the picture's size; a few of their values are high."""

    def __init__(self, count: int, fields: int = 0) -> None:
        super().__init__()
        self.fields = fields
        self.conv = nn.Conv2d(3, count + fields, 8, stride=8)
        generator = torch.Generator().manual_seed(count)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)

    def forward(self, x: Tensor) -> Any:
        found = self.conv(x)
        if not self.fields:
            return found
        return found[:, : self.fields].tanh(), found[:, self.fields :].sub(0.5)


def openpose(patch: pytest.MonkeyPatch) -> None:
    made = {
        _openpose.BODY: Maps(19, fields=38),
        _openpose.HAND: Maps(22),
        _openpose.FACE: Maps(71),
    }

    @contextmanager
    def network(record, build, device):
        with torch.no_grad():
            yield made[record]

    patch.setattr(_openpose, "network", network)


def dwpose(patch: pytest.MonkeyPatch) -> None:
    scenes = cache(yolox_output)
    _sessions(patch, _dwpose, _dwpose.PEOPLE, scenes, cache(lambda seed: simcc_output(seed, 1)))


def animal_pose(patch: pytest.MonkeyPatch) -> None:
    scenes = cache(animal_output)
    points = cache(lambda seed: simcc_output(seed, 1, 17, (512, 512)))
    _sessions(patch, _animal_pose, _animal_pose.FINDER, scenes, points)


def _sessions(
    patch: pytest.MonkeyPatch,
    module: Any,
    finder: Any,
    scenes: Callable[[int], np.ndarray],
    points: Callable[[int], list[np.ndarray]],
) -> None:
    """A scene for each picture, and the points of each of its crops."""

    def found(pixels: np.ndarray) -> list[np.ndarray]:
        return [scenes(seed_of(pixels) % KINDS)]

    def read(pixels: np.ndarray) -> list[np.ndarray]:
        each = [points(seed_of(one) % KINDS) for one in pixels]
        return [np.concatenate(maps) for maps in zip(*each, strict=True)]

    @contextmanager
    def session(record, device):
        yield _session(found if record is finder else read)

    patch.setattr(module, "session", session)


def _session(give: Callable[[np.ndarray], list[np.ndarray]]) -> Any:
    inputs = [SimpleNamespace(name="pixels", shape=["batch", 3, "height", "width"])]
    return SimpleNamespace(
        get_inputs=lambda: inputs, run=lambda names, feed: give(feed[inputs[0].name])
    )


def salient(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def session(record, device):
        yield _session(lambda pixels: [pixels.mean(axis=1, keepdims=True)])

    patch.setattr(keeper, "session", session)


def person(patch: pytest.MonkeyPatch) -> None:
    _networks(patch, _person, {_person.WEIGHTS: lambda pixels: [pixels[..., :1]]})


def blazepose(patch: pytest.MonkeyPatch) -> None:
    nets = {
        _blazepose.BODY_FINDER: _finder(2254, 4),
        _blazepose.HAND_FINDER: _finder(2016, 7),
        _blazepose.FACE_FINDER: _finder(896, 6),
        _blazepose.BODY_POINTS: _body,
        _blazepose.HAND_POINTS: lambda pixels: [*_points(pixels, 21, 224), _sure, _sure],
        _blazepose.FACE_POINTS: lambda pixels: _points(pixels, 468, 192),
    }

    _networks(patch, _blazepose, nets)


def face_mesh(patch: pytest.MonkeyPatch) -> None:
    nets = {
        _face_mesh.FACE_FINDER: _finder(896, 6),
        _face_mesh.POINTS: lambda pixels: _points(pixels, 478, 192),
    }
    _networks(patch, _face_mesh, nets)


def _networks(patch: pytest.MonkeyPatch, module: Any, nets: Any) -> None:
    @contextmanager
    def networks(records, device, **_):
        yield nets

    patch.setattr(module, "networks", networks)


_sure = np.ones(1, np.float32)


def _finder(cells: int, points: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Two cells see something."""

    def net(pixels: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(seed_of(pixels))
        values = rng.normal(0, 20, (cells, 4 + 2 * points))
        values[:, 2:4] = rng.uniform(20, 90, (cells, 2))
        logits = np.full((cells, 1), -9, np.float32)
        logits[rng.integers(0, cells, 2)] = 4
        return [values.astype(np.float32), logits]

    return net


def _points(pixels: np.ndarray, count: int, side: int) -> list[np.ndarray]:
    """Places of (x, y, z), one after the other, and that they are sure."""
    places = np.random.default_rng(seed_of(pixels)).uniform(0, side, 3 * count)
    return [places.astype(np.float32), _sure]


def _body(pixels: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(seed_of(pixels))
    values = np.concatenate([rng.uniform(0, 256, (39, 3)), rng.normal(2, 2, (39, 2))], axis=1)
    maps = rng.normal(-2, 2, (64, 64, 39)).astype(np.float32)
    return [values.astype(np.float32).ravel(), _sure, _sure, maps, _sure]
