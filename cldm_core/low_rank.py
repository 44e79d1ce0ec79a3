"""ControlNets to Control-LoRAs: what they have beyond their base, in matrices of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint.read import Source
from .control_lora import LORA_MARKER
from .errors import CldmError
from .surgery import plain_weights
from .weights import base_weights, stored_copy, twins

EXACT = 192
"""Matrices with a side up to this, or up to three times the rank, are decomposed in full."""
OVERSAMPLING = 16
ITERATIONS = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerError:
    """How well one layer's difference from the base is kept.

    rank: what it is stored with; clipped: whether it is less than asked for, because the layer has
    no more; error: Frobenius norm of what is lost, by that of the difference; weight_error: by that
    of the weight.
    """

    layer: str
    shape: tuple[int, ...]
    rank: int
    clipped: bool
    error: float
    weight_error: float


@dataclass(frozen=True)
class LowRankReport:
    """What an extraction lost; errors as in LayerError, over all layers.

    size, original_size: how many numbers are stored and how many the net has, so that number types
    don't matter.
    """

    rank: int
    layers: tuple[LayerError, ...]
    error: float
    weight_error: float
    size: int
    original_size: int

    @property
    def clipped(self) -> tuple[str, ...]:
        """The layers that have no such rank; what differs in them is kept whole."""
        return tuple(layer.layer for layer in self.layers if layer.clipped)

    def __str__(self) -> str:
        ranks = sorted({layer.rank for layer in self.layers}) or [self.rank]
        spread = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        share = _ratio(self.size, self.original_size)
        larger = (
            " It is larger than the net itself: choose a lower rank, or keep the net."
            if self.size >= self.original_size
            else ""
        )
        return (
            f"{len(self.layers)} layers of {spread}; lost are {self.error:.1%} of what they have "
            f"beyond the base, which is {self.weight_error:.2%} of their weights; "
            f"{self.size / 1e6:.1f} M numbers instead of {self.original_size / 1e6:.1f} M "
            f"({share:.0%}).{larger}"
        )


def extract_control_lora(
    control: Source,
    base: Source,
    rank: int,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], LowRankReport]:
    """A ControlNet as a Control-LoRA of `rank` in Stability AI's format, and what that loses.

    Of each weight with a twin in the base, the difference is cut to its largest singular values:
    `LAYER.up` (out, rank[, 1, 1]) and `LAYER.down` (rank, in[, h, w]). Norms, biases and what no
    base has are stored whole; a rank that a layer hasn't is cut to what it has, and to 1 where
    nothing differs. Large matrices are decomposed by a randomised method (Halko, Martinsson, Tropp
    2011), the same for the same `seed`. dtype: None for each weight's own, and fp16 where those
    have 8 bits. progress: called with (weights done, weights in all). Raises CldmError
    for a rank below 1, CheckpointMismatch where the base has other shapes, UnsupportedCheckpoint
    for other nets.
    """
    if rank < 1:
        raise CldmError(f"The rank is {rank}, expected a whole number from 1.")
    net = plain_weights(control)
    base_twins = twins(net, base_weights(base), "the base")
    stored_type = dtype or net.output_type
    ranked = [key for key, value in base_twins.items() if value.ndim >= 2]
    state = {LORA_MARKER: torch.zeros(0)} | {
        key: stored_copy(value, stored_type, key)
        for key, value in net.state.items()
        if key not in set(ranked)
    }
    layers, total = [], _Norms()
    generator = torch.Generator().manual_seed(seed)
    for done, key in enumerate(ranked, 1):
        weight, path = net.state[key], key.removesuffix(".weight")
        delta = weight.float() - base_twins[key].float()
        up, down = (
            stored_copy(part, stored_type or weight.dtype, key)
            for part in _factors(delta.flatten(1), rank, generator)
        )
        residual = delta.flatten(1) - up.float() @ down.float()
        norms = _Norms(_norm(residual), _norm(delta), _norm(weight))
        total = total.joined(norms)
        clipped = len(down) < rank
        shape = tuple(weight.shape)
        layers.append(LayerError(path, shape, len(down), clipped, norms.error, norms.weight_error))
        state[f"{path}.up"] = up.reshape(*up.shape, *[1] * (weight.ndim - 2))
        state[f"{path}.down"] = down.reshape(-1, *weight.shape[1:])
        if progress is not None:
            progress(done, len(ranked))
    report = LowRankReport(
        rank,
        tuple(layers),
        total.error,
        total.weight_error,
        _count(state),
        _count(net.state),
    )
    return state, report


class _Norms(NamedTuple):
    """Frobenius norms of what is lost of weights, of their difference from the base, of them."""

    lost: float = 0.0
    changed: float = 0.0
    whole: float = 0.0

    def joined(self, others: _Norms) -> _Norms:
        """The norms of these weights and others together."""
        return _Norms(*map(math.hypot, self, others))

    @property
    def error(self) -> float:
        return _ratio(self.lost, self.changed)

    @property
    def weight_error(self) -> float:
        return _ratio(self.lost, self.whole)


def _factors(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(out, r) and (r, in) whose product is nearest to the matrix; r is `rank` or all it has."""
    rank = min(rank, *matrix.shape) if matrix.any() else 1
    if min(matrix.shape) <= max(EXACT, 3 * rank):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, rank + OVERSAMPLING, generator)
        inner, s, vh = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
        u = basis @ inner
    # Both get half of the scale, so that none leaves the range of fp16.
    half = s[:rank].sqrt()
    return (u[:, :rank] * half).contiguous(), (half[:, None] * vh[:rank]).contiguous()


def _range(matrix: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """An orthonormal basis (out, count) of what the matrix does most."""
    probe = torch.randn(matrix.shape[1], count, generator=generator).to(matrix)
    basis: Tensor = torch.linalg.qr(matrix @ probe).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    return basis


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _count(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())
