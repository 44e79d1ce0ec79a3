"""A convolution's gradients by products of matrices are those of PyTorch's operator."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core.training import conv_gradients
from controlnet_pack.cldm_core.training.conv_gradients import (
    Geometry,
    convolution_gradients,
    quicker_as_products,
)
from controlnet_pack.cldm_core.training.frozen import convolve

ALL = (True, True, True)
PLAIN = Geometry((1, 1), (1, 1), (1, 1), 1)


def of_operator(grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> tuple[Tensor, ...]:
    found = torch.ops.aten.convolution_backward.default(
        *(grad, x, weight, [len(weight)], conv.stride, conv.padding, conv.dilation),
        *(False, [0, 0], conv.groups, [True, True, True]),
    )
    return tuple(found)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": (1, 0), "stride": (1, 2)},
    ],
)
def test_products_give_the_operators_gradients(monkeypatch, batch, options) -> None:
    monkeypatch.setattr(conv_gradients, "WEIGHTS_PER_PIXEL", 0)
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(6, 10, 3, **options)
    x = torch.randn(batch, 6, 7, 9, generator=generator)
    grad = torch.randn(conv(x).shape, generator=generator)
    geometry = Geometry.of(conv)
    assert quicker_as_products(grad, conv.weight, geometry)

    found = convolution_gradients(grad, x, x.shape, conv.weight, geometry, ALL)

    for mine, theirs in zip(found, of_operator(grad, x, conv.weight, conv), strict=True):
        assert mine is not None
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("least", [0, 1 << 40], ids=["products", "operator"])
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3))[1:])
def test_only_what_is_needed_is_computed(monkeypatch, least, needs) -> None:
    monkeypatch.setattr(conv_gradients, "WEIGHTS_PER_PIXEL", least)
    x, weight, grad = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(1, 3, 5, 5)
    read = x if needs[1] else None

    found = convolution_gradients(grad, read, x.shape, weight, PLAIN, needs)

    assert tuple(item is not None for item in found) == needs


@pytest.mark.parametrize(
    ("channels", "side", "quicker"),
    [(1280, 8, True), (1280, 16, True), (640, 8, True), (640, 16, False), (320, 32, False)],
)
def test_products_are_for_wide_layers_with_few_pixels(channels, side, quicker) -> None:
    weight = torch.empty(channels, channels, 3, 3, device="meta")
    grad = torch.empty(1, 1).expand(1, channels)[..., None, None].expand(-1, -1, side, side)

    with torch.inference_mode():
        chosen = quicker_as_products(grad, weight, PLAIN)

    assert chosen is quicker


@pytest.mark.parametrize(
    ("weight", "geometry"),
    [
        (torch.empty(4096, 4096, 1, 1, device="meta"), PLAIN),
        (torch.empty(1024, 1, 3, 3, device="meta"), Geometry((1, 1), (1, 1), (1, 1), 1024)),
        (torch.empty(1024, 1024, 3, 3, device="meta"), Geometry((1, 1), "same", (1, 1), 1)),
        (torch.empty(1024, 1024, 3, 3, device="meta", dtype=torch.bfloat16), PLAIN),
    ],
    ids=["1x1", "groups", "padding by name", "bf16"],
)
def test_other_convolutions_stay_with_the_operator(weight, geometry) -> None:
    grad = torch.empty(1, weight.shape[0], 1, 1)

    assert not quicker_as_products(grad, weight, geometry)


def test_a_training_convolution_gets_them(monkeypatch) -> None:
    monkeypatch.setattr(conv_gradients, "WEIGHTS_PER_PIXEL", 0)
    seen: list[torch.Size] = []
    by_products = conv_gradients._by_products
    monkeypatch.setattr(
        conv_gradients,
        "_by_products",
        lambda grad, *rest: seen.append(grad.shape) or by_products(grad, *rest),
    )
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 4, 4)

    convolve(x, conv).sum().backward()

    assert seen == [torch.Size((1, 4, 4, 4))]
    mine = conv.weight.grad
    conv.weight.grad = None
    conv(x).sum().backward()
    torch.testing.assert_close(mine, conv.weight.grad)
