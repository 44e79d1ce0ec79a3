"""State dicts compared, and changed as files have them."""

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def same(first: State, second: State) -> bool:
    """Whether both hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def close(first: State, second: State, tolerance: float) -> bool:
    """Whether no number is further apart than that."""
    assert first.keys() == second.keys()
    return max((first[k].float() - second[k].float()).abs().max() for k in first) < tolerance


def half(state: State) -> dict[str, Tensor]:
    return {key: value.half() for key, value in state.items()}
