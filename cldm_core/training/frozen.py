"""Layers that keep for the backward pass only what can't be had again cheaply.

Plain autograd keeps the inputs of each norm, SiLU and convolution. Here such a row keeps the norm's
input alone and computes the rest anew; a convolution with frozen weights keeps nothing, as the
gradient of its input needs its weights alone (a frozen linear layer does so by itself). Values are
those of the plain layers to the bit, gradients to rounding, under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .conv_gradients import Geometry, convolution_gradients

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)


def convolve(
    x: Tensor, conv: nn.Conv2d, norm: nn.GroupNorm | None = None, *, silu: bool = False
) -> Tensor:
    """conv(SiLU(norm(x))) for x (B, C, h, w), without the norm or the SiLU where they aren't given.

    Kept for the backward pass: x, or nothing where there is neither norm nor SiLU and the
    convolution is frozen.
    """
    if norm is None and not silu and conv.weight.requires_grad and not x.is_cpu:
        # Nothing to be had: PyTorch's own node is launched sooner.
        return F.conv2d(x, conv.weight, conv.bias, *astuple(Geometry.of(conv)))
    plan = _Plan(Geometry.of(conv), silu, *((norm.num_groups, norm.eps) if norm else (0, 0.0)))
    gain, shift = (norm.weight, norm.bias) if norm else (None, None)
    out: Tensor = _applied(_Convolve, x, gain, shift, conv.weight, conv.bias, plan)
    return out


def project(x: Tensor, norm: nn.LayerNorm, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Each layer of norm(x), for x (B, N, C). Kept for the backward pass: x."""
    weights = (layer.weight for layer in layers)
    biases = (layer.bias for layer in layers)
    out: tuple[Tensor, ...] = _applied(
        _Project, x, norm.weight, norm.bias, norm.eps, len(layers), *weights, *biases
    )
    return out


def projected_again(
    x: Tensor,
    norm: nn.LayerNorm,
    layers: Sequence[nn.Linear],
    dtype: torch.dtype,
    inner: torch.dtype,
) -> tuple[Tensor, ...]:
    """What `project` gave, inside a backward pass, where the autocast that made the types is over.

    dtype: of what it gave; inner: the one that the norm was computed in (norm_type).
    """
    with _without_autocast(x):
        h, *_ = _layer_norm(x, norm.weight, norm.bias, norm.eps, inner)
        return tuple(
            F.linear(h.to(dtype), layer.weight.to(dtype), _cast(layer.bias, dtype))
            for layer in layers
        )


class Recomputed:
    """Hooks on what is kept: of these tensors nothing is, they are computed a second time.

    compute: gives the tensors again, in the same layout.
    """

    def __init__(self, tensors: Sequence[Tensor], compute: Callable[[], Sequence[Tensor]]) -> None:
        self._numbers = {t.untyped_storage().data_ptr(): i for i, t in enumerate(tensors)}
        self._compute = compute
        self._again: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> Any:
        number = self._numbers.get(tensor.untyped_storage().data_ptr())
        if number is None:
            return tensor.detach()  # a result that knows its own graph would keep it for ever
        return number, tensor.shape, tensor.stride(), tensor.storage_offset()

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, *layout = packed
        if number not in self._again:
            self._again = dict(enumerate(self._compute()))
        # Each is asked for once and then let go.
        return self._again.pop(number).as_strided(*layout)


def gate(x: Tensor, layer: nn.Linear) -> Tensor:
    """layer(a * GELU(b)) for x = (a, b) side by side, (B, N, 2C). Kept for the backward pass: x."""
    out: Tensor = _applied(_Gate, x, layer.weight, layer.bias)
    return out


def _applied(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


@dataclass(frozen=True)
class _Plan:
    """What stands in a row: the convolution's geometry, and what comes before it."""

    geometry: Geometry
    silu: bool
    norm_groups: int
    eps: float


class _Convolve(Function):
    """[group norm,] [SiLU,] convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        ctx.plan, ctx.dtype, ctx.shape = plan, norm_type(x), x.shape
        h, mean, rstd = x, None, None
        if plan.norm_groups:
            h, mean, rstd = _group_norm(x, gain, shift, plan, ctx.dtype)
        if plan.silu:
            h = F.silu(h, inplace=h is not x)
        keep = plan.norm_groups or plan.silu or ctx.needs_input_grad[3]
        ctx.save_for_backward(x if keep else None, gain, shift, weight, mean, rstd)
        return F.conv2d(h, weight, bias, *astuple(plan.geometry))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, weight, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad
        before = any(needs[:3])
        with _without_autocast(grad):
            y = x
            if ctx.plan.norm_groups and (needs[3] or ctx.plan.silu):
                y, *_ = _group_norm(x, gain, shift, ctx.plan, ctx.dtype)
            read = (F.silu(y) if ctx.plan.silu else y).to(grad.dtype) if needs[3] else None
            inner, of_weight, of_bias = convolution_gradients(
                grad, read, ctx.shape, weight, ctx.plan.geometry, [before, needs[3], needs[4]]
            )
            of_gain = of_shift = None
            if inner is not None and ctx.plan.silu:
                inner = aten.silu_backward.default(inner.to(y.dtype), y)
            if inner is not None and ctx.plan.norm_groups:
                inner, of_gain, of_shift = _group_norm_backward(
                    inner.to(ctx.dtype), x.to(ctx.dtype), mean, rstd, gain, ctx.plan, needs[:3]
                )
        return _typed(inner, x), of_gain, of_shift, _typed(of_weight, weight), of_bias, None


def _group_norm(
    x: Tensor, gain: Tensor | None, shift: Tensor | None, plan: _Plan, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of x with means and inverse deviations, by the operator behind F.group_norm."""
    x = _laid_out(x.to(dtype), x)
    batch, channels, *sides = x.shape
    return torch.native_group_norm(
        x,
        _norm_weight(gain, x),
        _norm_weight(shift, x),
        batch,
        channels,
        sides[0] * sides[1],
        plan.norm_groups,
        plan.eps,
    )


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gain: Tensor | None,
    plan: _Plan,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    batch, channels, *sides = x.shape
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = (
        aten.native_group_norm_backward.default(
            _laid_out(grad, x),
            _laid_out(x, x),
            mean,
            rstd,
            _norm_weight(gain, x),
            batch,
            channels,
            sides[0] * sides[1],
            plan.norm_groups,
            list(needs),
        )
    )
    of_x, of_gain, of_shift = found
    return of_x, _typed(of_gain, gain), _typed(of_shift, gain)


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Contiguous, as F.group_norm makes it: in the layout of `like` on a CPU, else plain."""
    last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    if x.is_cpu and last:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def norm_type(x: Tensor) -> torch.dtype:
    """The type that norms compute x in: CUDA's autocast has them in fp32, a CPU's has not."""
    if x.is_cuda and x.dtype in HALF and torch.is_autocast_enabled("cuda"):
        return torch.float32
    return x.dtype


def _norm_weight(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """A norm's weight for x: CPUs take fp32 weights for half-precision inputs, GPUs do not."""
    return weight if weight is None or x.is_cpu else weight.to(x.dtype)


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """For backward passes, which choose their types themselves; mostly there is none to end."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _cast(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return weight if weight is None else weight.to(dtype)


def _typed(grad: Tensor | None, like: Tensor | None) -> Tensor | None:
    return grad if grad is None or like is None else grad.to(like.dtype)


class _Project(Function):
    """Layer norm, then one or more linear layers of the same input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        count: int,
        *layers: Any,
    ) -> tuple[Tensor, ...]:
        ctx.eps, ctx.dtype = eps, norm_type(x)
        weights, biases = layers[:count], layers[count:]
        h, mean, rstd = _layer_norm(x, gain, shift, eps, ctx.dtype)
        ctx.save_for_backward(x, gain, shift, mean, rstd, *weights)
        return tuple(F.linear(h, w, b) for w, b in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, mean, rstd, *weights = ctx.saved_tensors
        needs, count = ctx.needs_input_grad, len(weights)
        of_layers, of_biases = needs[5 : 5 + count], needs[5 + count :]
        of_x = of_gain = of_shift = None
        found: list[Tensor | None] = [None] * count
        with _without_autocast(x):
            if any(of_layers):
                h, *_ = _layer_norm(x, gain, shift, ctx.eps, ctx.dtype)
                found = [
                    _typed(_weight_gradient(grad, h), weight) if needed else None
                    for grad, weight, needed in zip(grads, weights, of_layers, strict=True)
                ]
            if any(needs[:3]):
                inner = _input_gradient(grads[0], weights[0])
                for grad, weight in zip(grads[1:], weights[1:], strict=True):
                    inner = inner.add_(_input_gradient(grad, weight))
                of_x, of_gain, of_shift = aten.native_layer_norm_backward.default(
                    inner.to(ctx.dtype),
                    x.to(ctx.dtype),
                    gain.shape,
                    mean,
                    rstd,
                    _norm_weight(gain, x.to(ctx.dtype)),
                    _norm_weight(shift, x.to(ctx.dtype)),
                    list(needs[:3]),
                )
        sums = (
            grad.flatten(0, -2).sum(0) if needed else None
            for grad, needed in zip(grads, of_biases, strict=True)
        )
        of_norm = _typed(of_x, x), _typed(of_gain, gain), _typed(of_shift, shift)
        return (*of_norm, None, None, *found, *sums)


def _layer_norm(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.to(dtype)
    return torch.native_layer_norm(
        x, gain.shape, _norm_weight(gain, x), _norm_weight(shift, x), eps
    )


def _input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Of a linear layer."""
    return torch.matmul(grad, weight.to(grad.dtype))


def _weight_gradient(grad: Tensor, read: Tensor) -> Tensor:
    """Of a linear layer that read `read`."""
    return grad.flatten(0, -2).mT @ read.to(grad.dtype).flatten(0, -2)


class _Gate(Function):
    """GEGLU's product (Shazeer 2020), then a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        value, control = x.chunk(2, dim=-1)
        return F.linear(F.gelu(control).mul_(value), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        with _without_autocast(x):
            value, control = x.chunk(2, dim=-1)
            opened = F.gelu(control)
            if ctx.needs_input_grad[1]:
                of_weight = _typed(_weight_gradient(grad, opened * value), weight)
            if ctx.needs_input_grad[2]:
                of_bias = grad.flatten(0, -2).sum(0)
            if ctx.needs_input_grad[0]:
                inner = _input_gradient(grad, weight).to(x.dtype)
                of_x = torch.empty_like(x)
                of_value, of_control = of_x.chunk(2, dim=-1)
                torch.mul(inner, opened, out=of_value)
                of_control.copy_(aten.gelu_backward.default(inner.mul_(value), control))
        return of_x, of_weight, of_bias
