"""What each net added during one sampling, kept small: for the sheets of the Control Inspector."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ShapeError
from .masks import token_grid
from .residuals import Residuals

Array = np.ndarray[Any, np.dtype[np.float32]]

MAP_SIDE = 32
"""The longer side that a map has at most: 50 steps of a net for SD 1.5 take 1.5 MB."""
POSITIVE = "positive"


@dataclass(frozen=True)
class BlockNorm:
    """How large the residual of one block was in one step.

    rms: over rows, channels and the picture. map: (h, w), the same for each place, at most
    MAP_SIDE long; its mean square is the square of `rms` where the sizes divide. size: (h, w) of
    the residual itself; pooled ones are 1x1.
    """

    rms: float
    map: Array
    size: tuple[int, int]


@dataclass(frozen=True)
class _Square:
    """The mean square of one residual, and its map; or sums of them over calls."""

    mean: float
    map: Array
    size: tuple[int, int]

    def plus(self, other: _Square) -> _Square:
        grid = self.map + _in_size(other.map, self.map.shape)
        return _Square(self.mean + other.mean, grid, self.size)

    def norm(self, calls: int) -> BlockNorm:
        return BlockNorm(
            math.sqrt(self.mean / calls), np.sqrt(self.map / np.float32(calls)), self.size
        )


@dataclass(frozen=True)
class StepNorms:
    """What one net added in one step; all of its model calls are averaged.

    off: why it added nothing, or None where it was on; strength is then 0 and blocks is empty.
    blocks: by label, in the order of NetNorms.labels; a net without residuals has none.
    """

    step: int
    sigma: float
    strength: float
    blocks: dict[str, BlockNorm]
    off: str | None = None

    @property
    def rms(self) -> float:
        """The root of the blocks' mean square, each block counting the same; 0 without blocks."""
        squares = [block.rms**2 for block in self.blocks.values()]
        return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


@dataclass(frozen=True)
class NetNorms:
    """What one net added over the sampling: steps in order, labels of blocks from z0 down."""

    name: str
    net: str
    labels: tuple[str, ...]
    steps: tuple[StepNorms, ...]

    @property
    def steps_on(self) -> int:
        return sum(step.off is None for step in self.steps)


@dataclass
class _Step:
    """The sums over the calls of one step; squares: by block."""

    sigma: float
    strength: float = 0.0
    calls: int = 0
    positive: bool = False
    squares: dict[str, _Square] = field(default_factory=dict)
    off: str | None = None

    def add(self, strength: float, squares: dict[str, _Square], positive: bool) -> None:
        """Adds a call; the first positive one discards negative ones, and later ones are ignored.

        Samplers may compute the two sides in calls of their own, in either order.
        """
        if self.calls and positive != self.positive:
            if self.positive:
                return
            self.calls, self.strength, self.squares = 0, 0.0, {}
        self.positive, self.calls = positive, self.calls + 1
        self.strength += strength
        for label, square in squares.items():
            sums = self.squares.get(label)
            self.squares[label] = square if sums is None else sums.plus(square)

    def norms(self, step: int, labels: Sequence[str]) -> StepNorms:
        if not self.calls:
            return StepNorms(step, self.sigma, 0.0, {}, self.off)
        blocks = {
            label: self.squares[label].norm(self.calls) for label in labels if label in self.squares
        }
        return StepNorms(step, self.sigma, self.strength / self.calls, blocks)


@dataclass
class _Net:
    """One net while it is recorded."""

    name: str
    net: str
    steps: dict[int, _Step] = field(default_factory=dict)

    def norms(self) -> NetNorms:
        seen = {label for step in self.steps.values() for label in step.squares}
        labels = tuple(sorted(seen, key=_depth))
        steps = sorted(self.steps.items())
        return NetNorms(
            self.name, self.net, labels, tuple(step.norms(at, labels) for at, step in steps)
        )


class ControlRecord:
    """Filled in while sampling, one call for each net and model call; read by the sheets.

    It keeps small maps on the CPU and no tensor that it was given.
    """

    def __init__(self) -> None:
        self._nets: dict[tuple[str, Hashable], _Net] = {}

    def begin(self) -> None:
        """A new sampling starts: the last one is forgotten."""
        self._nets.clear()

    def note(
        self,
        *,
        name: str,
        net: str,
        step: float,
        sigma: float,
        strength: float,
        residuals: Residuals,
        side: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        key: Hashable = None,
    ) -> None:
        """What one net added in one model call, after weights, masks and mode.

        - name, net: of the file, and the family.
        - step: from 0; parts of a step, as second-order samplers make them, belong to the step
          before.
        - side: "positive" or else, for each row, or for each of the equal parts that the rows
          consist of. Where a step has positive rows, in this call or another, only those count.
        - size: (h, w) of the latents, to lay out residuals that are tokens.
        - key: tells nets of the same name apart.

        A net without residuals gives its strength alone. Raises ShapeError where sides and rows
        don't fit.
        """
        rows = None if side is None else [one == POSITIVE for one in side]
        positive = rows is not None and any(rows)
        squares = _mean_squares(residuals, rows if positive else None, size)
        self._at(name, net, key, step, sigma).add(strength, squares, positive)

    def skip(
        self,
        *,
        name: str,
        net: str,
        step: float,
        sigma: float,
        reason: str,
        key: Hashable = None,
    ) -> None:
        """One net added nothing in one model call; reason: a few words, such as "weight 0"."""
        self._at(name, net, key, step, sigma).off = reason

    def _at(self, name: str, net: str, key: Hashable, step: float, sigma: float) -> _Step:
        steps = self._nets.setdefault((name, key), _Net(name, net)).steps
        # Steps are found by sigmas in float32: a hair before a step is that step.
        return steps.setdefault(math.floor(step + 1e-3), _Step(sigma))

    @property
    def nets(self) -> tuple[NetNorms, ...]:
        """What was recorded, a net each, in the order in which they first came."""
        return tuple(net.norms() for net in self._nets.values())


def _depth(label: str) -> tuple[int, int]:
    kind = label.rstrip("0123456789")
    return ("in", "z", "middle").index(kind), int(label[len(kind) :] or 0)


def _places(residuals: Residuals) -> Iterator[tuple[str, Tensor]]:
    """Labels and tensors, from the first block that something is added to down to the middle."""
    for kind, slot in (("in", residuals.input), ("z", residuals.output)):
        for index, item in enumerate(slot):
            if item is not None:
                yield f"{kind}{index}", item
    for index, item in enumerate(residuals.middle):
        if item is not None:
            yield f"middle{index or ''}", item


def _mean_squares(
    residuals: Residuals, rows: Sequence[bool] | None, size: tuple[int, int] | None
) -> dict[str, _Square]:
    """The mean square of each block."""
    found: list[tuple[str, torch.Size, torch.Size]] = []
    parts: list[Tensor] = []
    for label, item in _places(residuals):
        chosen = item.detach() if rows is None else _rows_of(item.detach(), rows)
        squares = _as_picture(chosen, size).float().square().mean(dim=(0, 1))
        small = F.adaptive_avg_pool2d(squares[None], _small(squares.shape))[0]
        found.append((label, squares.shape, small.shape))
        parts += [squares.mean()[None], small.flatten()]
    if not parts:
        return {}
    # One transfer for all blocks: each would wait for the GPU.
    flat: Array = torch.cat(parts).cpu().numpy()
    result, at = {}, 0
    for label, (height, width), shape in found:
        end = at + 1 + shape.numel()
        grid = flat[at + 1 : end].reshape(shape).copy()
        result[label] = _Square(float(flat[at]), grid, (height, width))
        at = end
    return result


def _rows_of(item: Tensor, rows: Sequence[bool]) -> Tensor:
    """The rows that are asked for; one row stands for all."""
    batch = item.shape[0]
    if batch == 1:
        return item
    if batch % len(rows):
        raise ShapeError(
            f"{len(rows)} sides were given for a batch of {batch}: give one for each row, or one "
            "for each of its equal parts."
        )
    each = batch // len(rows)
    # Not a mask: how many rows it leaves would have to come back from the GPU.
    chosen = [row for row in range(batch) if rows[row // each]]
    return item[torch.tensor(chosen, device=item.device)]


def _as_picture(item: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(B, C, h, w), of (B, C, h, w) or of tokens (B, tokens, C) with latents of `size`."""
    if item.ndim == 4:
        return item
    if item.ndim != 3:
        raise ShapeError(
            f"A residual has shape {tuple(item.shape)}, expected (B, C, h, w) or (B, tokens, C)."
        )
    grid = None if size is None else token_grid(item.shape[1], size)
    if grid is None:  # one number for all
        return item.reshape(item.shape[0], -1, 1, 1)
    return item.movedim(-1, 1).reshape(item.shape[0], -1, *grid)


def _small(size: Sequence[int]) -> tuple[int, int]:
    scale = max(1.0, max(size) / MAP_SIDE)
    height, width = (max(1, round(side / scale)) for side in size)
    return height, width


def _in_size(grid: Array, size: Sequence[int]) -> Array:
    """A map in the size of another, as tiles of unlike sizes need it."""
    if grid.shape == tuple(size):
        return grid
    height, width = size
    resized: Array = F.adaptive_avg_pool2d(torch.from_numpy(grid)[None], (height, width))[0].numpy()
    return resized
