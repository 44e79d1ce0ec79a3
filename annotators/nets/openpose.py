"""OpenPose's networks: body (Cao et al., 2017), hand and face (Simon et al., 2017).

Convolutional pose machines on the front of a VGG-19: every stage sees the features and the maps of
the stage before. Maps are an eighth of the input's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BODY_MAPS = 19
"""18 points and the background."""
FIELD_MAPS = 38
"""x and y of the direction along each of 19 limbs."""
HAND_MAPS = 22
FACE_MAPS = 71
"""The points of a hand (21) and a face (70), and the background."""

Layer: TypeAlias = tuple[str, int, int]
"""Name, channels out, kernel."""

_POOL: Layer = ("", 0, 0)
_VGG: tuple[Layer, ...] = (
    *(("conv1_1", 64, 3), ("conv1_2", 64, 3), _POOL),
    *(("conv2_1", 128, 3), ("conv2_2", 128, 3), _POOL),
    *((f"conv3_{number}", 256, 3) for number in (1, 2, 3, 4)),
    _POOL,
    *(("conv4_1", 512, 3), ("conv4_2", 512, 3)),
)
FEATURES = 128


def _stage(suffix: str, maps: int) -> list[Layer]:
    """Every stage after the first: five wide convolutions and two of single pixels."""
    wide: list[Layer] = [(f"Mconv{number}_{suffix}", 128, 7) for number in (1, 2, 3, 4, 5)]
    return [*wide, (f"Mconv6_{suffix}", 128, 1), (f"Mconv7_{suffix}", maps, 1)]


class _Machine(nn.Module):
    """Convolutions by name, run in chains."""

    def _add(self, channels: int, layers: Iterable[Layer]) -> list[str]:
        """New convolutions one after the other; gives their names in turn."""
        names = []
        for name, out, kernel in layers:
            names.append(name)
            if name:
                self.add_module(name, nn.Conv2d(channels, out, kernel, padding=kernel // 2))
                channels = out
        return names

    def _chain(self, x: Tensor, names: Sequence[str], *, last: bool = False) -> Tensor:
        """ReLU after every convolution but the last one, unless `last`."""
        for number, name in enumerate(names, start=1):
            if not name:
                x = F.max_pool2d(x, 2)
                continue
            x = getattr(self, name)(x)
            if last or number < len(names):
                x = F.relu_(x)
        return x


class BodyNet(_Machine):
    """(N, 3, H, W) BGR in [-0.5, 0.5], H and W multiples of 8, to limb fields and point maps.

    Keys of body_pose_model.pth: conv1_1 ... conv5_1_CPM_L1 ... Mconv7_stage6_L2.
    """

    def __init__(self) -> None:
        super().__init__()
        last = (("conv4_3_CPM", 256, 3), ("conv4_4_CPM", FEATURES, 3))
        self._front = self._add(3, (*_VGG, *last))
        # [stage][branch]: names of a chain; branch 1 makes the fields, branch 2 the points.
        maps = ((1, FIELD_MAPS), (2, BODY_MAPS))
        self._stages = [[self._add(FEATURES, self._first(*one)) for one in maps]]
        channels = FIELD_MAPS + BODY_MAPS + FEATURES
        for stage in range(2, 7):
            branches = [_stage(f"stage{stage}_L{branch}", out) for branch, out in maps]
            self._stages.append([self._add(channels, branch) for branch in branches])

    @staticmethod
    def _first(branch: int, maps: int) -> list[Layer]:
        narrow: list[Layer] = [(f"conv5_{number}_CPM_L{branch}", 128, 3) for number in (1, 2, 3)]
        return [*narrow, (f"conv5_4_CPM_L{branch}", 512, 1), (f"conv5_5_CPM_L{branch}", maps, 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fields (N, 38, H / 8, W / 8) and points (N, 19, H / 8, W / 8)."""
        features = seen = self._chain(x, self._front, last=True)
        for stage in self._stages:
            fields = self._chain(seen, stage[0])
            # The reference has a ReLU after the very last map of points, and none before.
            points = self._chain(seen, stage[1], last=stage is self._stages[-1])
            seen = torch.cat([fields, points, features], 1)
        return fields, points


class PartNet(_Machine):
    """One hand or face, (N, 3, H, W) BGR in [-0.5, 0.5], to maps (N, maps, H / 8, W / 8).

    Keys of hand_pose_model.pth and facenet.pth: conv1_1 ... conv6_2_CPM, Mconv7_stage6.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        more = (("conv4_3", 512, 3), ("conv4_4", 512, 3), ("conv5_1", 512, 3), ("conv5_2", 512, 3))
        self._front = self._add(3, (*_VGG, *more, ("conv5_3_CPM", FEATURES, 3)))
        first = (("conv6_1_CPM", 512, 1), ("conv6_2_CPM", maps, 1))
        self._stages = [self._add(FEATURES, first)]
        for stage in range(2, 7):
            layers = _stage(f"stage{stage}", maps)
            self._stages.append(self._add(maps + FEATURES, layers))

    def forward(self, x: Tensor) -> Tensor:
        """The last stage's maps."""
        features = seen = self._chain(x, self._front, last=True)
        for stage in self._stages:
            maps = self._chain(seen, stage)
            seen = torch.cat([maps, features], 1)
        return maps
