"""Whether a file's keys and shapes are those of the net that its configuration describes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from ..errors import CheckpointMismatch, listed
from .read import StateDict

Shapes = Mapping[str, tuple[int, ...]]
_PROJECTIONS = (".proj_in.weight", ".proj_out.weight")


def shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {key: tuple(value.shape) for key, value in state.items()}


class Differences(NamedTuple):
    """Where a state dict isn't what a net expects; keys, and sentences for the misshapen."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def differences(expected: Shapes, state: StateDict) -> Differences:
    """How the tensors differ from the expected ones."""
    return Differences(
        [key for key in expected if key not in state],
        [key for key in state if key not in expected],
        [
            f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key])}"
            for key in expected
            if key in state and tuple(state[key].shape) != tuple(expected[key])
        ],
    )


def require_fit(expected: Shapes, state: StateDict, name: str) -> None:
    """Raises CheckpointMismatch unless the tensors have just the expected keys and shapes."""
    found = differences(expected, state)
    if any(found):
        told = (
            _some("missing", found.missing),
            _some("unexpected", found.unexpected),
            _some("", found.misshapen),
        )
        raise CheckpointMismatch(
            f"{name} doesn't fit the net that its configuration describes: "
            f"{'; '.join(filter(None, told))}."
        )


def conformed(expected: Shapes, state: StateDict) -> dict[str, Tensor]:
    """The tensors, projections of transformers in the form that the net has.

    A 1x1 convolution and a linear layer hold the same numbers, and files of SD 2.x mix them.
    """
    return {
        key: _projection(value, expected[key])
        if key.endswith(_PROJECTIONS) and key in expected
        else value
        for key, value in state.items()
    }


def _projection(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    same = tuple(value.shape[:2]) == tuple(shape[:2]) and {*value.shape[2:], *shape[2:]} == {1}
    return value.reshape(shape) if same else value


def _some(title: str, items: Collection[str]) -> str:
    if not items:
        return ""
    return f"{title} {listed(items)}".strip()
