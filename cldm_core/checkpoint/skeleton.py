"""The keys and shapes of a net's weights, told without making the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


class _Layer(nn.Module):
    """A layer that knows its weights' shapes and has no weights.

    A module makes a dozen dictionaries of its own, most of the time and memory that building a net
    takes; these are empty and never written to, so that all layers share the class's.
    """

    _parameters: dict[str, nn.Parameter | None] = {}  # noqa: RUF012
    _buffers: dict[str, Tensor | None] = {}  # noqa: RUF012
    _modules: dict[str, nn.Module | None] = {}  # noqa: RUF012
    training = True
    shapes: Shapes

    def __init__(self, weight: tuple[int, ...], bias: bool) -> None:
        shapes = {"weight": weight, "bias": weight[:1]} if bias else {"weight": weight}
        object.__setattr__(self, "shapes", shapes)


class Skeleton:
    """Stands in for torch.nn where a net is built only to learn what weights it has.

    That takes a fifth of the time of building on the meta device, which counts where a file is
    inspected.
    """

    @staticmethod
    def Linear(in_features: int, out_features: int, bias: bool = True) -> _Layer:  # noqa: N802
        return _Layer((out_features, in_features), bias)

    @staticmethod
    def Conv2d(  # noqa: N802
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *_: Any,
        bias: bool = True,
        **__: Any,
    ) -> _Layer:
        return _Layer((out_channels, in_channels, kernel_size, kernel_size), bias)

    @staticmethod
    def GroupNorm(num_groups: int, num_channels: int, eps: float = 1e-5) -> _Layer:  # noqa: N802
        return _Layer((num_channels,), True)

    @staticmethod
    def LayerNorm(normalized_shape: int, eps: float = 1e-5) -> _Layer:  # noqa: N802
        return _Layer((normalized_shape,), True)


def shapes_of(build: Callable[[Any], nn.Module]) -> Shapes:
    """The shape of every weight that `build(ops)` has with torch.nn as `ops`, by key."""
    shapes: Shapes = {}
    with torch.device("meta"):
        net = build(Skeleton)
    for path, module in net.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, _Layer):
            own = module.shapes
        else:
            own = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
        for name, shape in own.items():
            shapes[prefix + name] = shape
    return shapes
