"""Weights and inputs that every machine and library version draws alike: PCG64's bits, by name.

Only the generator's raw bits are used: NumPy keeps those stable for good, but not what its
distributions make of them, and torch promises neither.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def seeded_array(shape: tuple[int, ...], name: str, seed: int) -> np.ndarray:
    """Uniform float32 numbers of mean 0 and variance 1, set by shape, name and seed alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    count = math.prod(shape)
    bits = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(-(-count // 4))
    values = bits.astype("<u8", copy=False).view("<u2")[:count].astype(np.float32)
    values -= np.float32(32767.5)
    values *= np.float32(math.sqrt(12) / 65536)
    return values.reshape(shape)


def seeded_tensor(shape: tuple[int, ...], name: str, seed: int) -> Tensor:
    """An input of mean 0 and variance 1."""
    return torch.from_numpy(seeded_array(shape, name, seed))


def seeded_state_dict(
    shapes: Mapping[str, tuple[int, ...]], seed: int, faint: str | None = None
) -> dict[str, Tensor]:
    """Weights that keep activations of order 1; none is zero, zero convolutions included.

    Those whose key contains `faint` are 20 times smaller, the gains of norms excepted.
    """
    return {
        key: _weight(key, tuple(shape), seed, 0.05 if faint is not None and faint in key else 1.0)
        for key, shape in shapes.items()
    }


def _weight(key: str, shape: tuple[int, ...], seed: int, gain: float) -> Tensor:
    values = seeded_array(shape, key, seed)
    if len(shape) >= 2:
        values *= np.float32(gain / math.sqrt(math.prod(shape[1:])))
    elif key.endswith(".weight"):  # of a norm
        values *= np.float32(0.1)
        values += np.float32(1)
    else:
        values *= np.float32(0.1 * gain)
    return torch.from_numpy(values)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """What `seeded_state_dict` takes, from a module that may be on the meta device."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def seeded_module(
    network: Callable[[Any], nn.Module], config: Any, seed: int, faint: str | None = None
) -> Any:
    """`network(config)` with seeded weights, frozen and in eval mode, never in memory twice."""
    with torch.device("meta"):
        module = network(config)
    module.load_state_dict(seeded_state_dict(shapes_of(module), seed, faint), assign=True)
    return module.requires_grad_(False).eval()


def sample(tensor: Tensor, count: int) -> Tensor:
    """`count` values spread over the tensor by a stride that shares no factor with its layout."""
    index = torch.arange(count) * 2654435761 % tensor.numel()
    return tensor.detach().flatten()[index]


def stats(tensor: Tensor) -> Tensor:
    """Mean, standard deviation and L2 norm, summed in float64."""
    wide = tensor.detach().double()
    return torch.stack([wide.mean(), wide.std(correction=0), wide.norm()]).float()
