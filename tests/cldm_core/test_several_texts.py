"""Several texts for the same pictures: what stands in front of the first text is computed once."""

from dataclasses import replace

import pytest
import torch

from controlnet_pack.cldm_core import (
    TINY,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    Residuals,
    ShapeError,
)
from controlnet_pack.cldm_core.config import UNetConfig

CONFIGS = {
    "tiny": TINY,
    "scale and shift": replace(TINY, use_scale_shift_norm=True),
    "no self-attention": replace(
        TINY, disable_self_attentions=(True,) * 3, disable_middle_self_attn=True
    ),
    "text in the middle only": replace(TINY, transformer_depth=(0, 0, 0)),
}


def net_of(config: UNetConfig) -> ControlNet:
    """A net whose zero-initialised layers have left zero."""
    net = ControlNet(ControlNetConfig(config)).requires_grad_(False)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def answers(net: ControlNet, pictures: int, texts: int) -> tuple[Residuals, Residuals]:
    """For pictures with several texts each: computed together, and row by row."""
    x, hint = torch.randn(pictures, 4, 6, 8), torch.rand(pictures, 3, 48, 64)
    times = torch.linspace(3, 900, pictures)
    context = torch.randn(texts * pictures, 5, 128)
    features = net.encode_hint(hint)
    together = net(x, features, times, context)
    rows = net(
        x.repeat(texts, 1, 1, 1), features.repeat(texts, 1, 1, 1), times.repeat(texts), context
    )
    return together, rows


@pytest.mark.parametrize(("pictures", "texts"), [(1, 2), (2, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_residuals_are_those_of_the_rows(name: str, pictures: int, texts: int) -> None:
    together, rows = answers(net_of(CONFIGS[name]), pictures, texts)
    for a, b in zip(
        (*together.output, *together.middle), (*rows.output, *rows.middle), strict=True
    ):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_what_stands_before_the_first_text_is_computed_once() -> None:
    net, seen = net_of(TINY), []
    for block in net.input_blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
    answers(net, 2, 2)
    together = seen[: len(net.input_blocks)]
    assert together[:2] == [2, 2]
    assert together[-1] == 4


def test_texts_must_be_a_multiple_of_the_pictures() -> None:
    net = net_of(TINY)
    x, features = torch.randn(2, 4, 6, 8), net.encode_hint(torch.rand(1, 3, 48, 64))
    with pytest.raises(ShapeError, match="one text for each picture"):
        net(x, features, torch.tensor([3.0, 900.0]), torch.randn(3, 5, 128))


def test_the_unet_wants_one_text_for_each_picture() -> None:
    with pytest.raises(ShapeError, match="one text for each picture"):
        ControlledUNet(TINY)(torch.randn(1, 4, 6, 8), torch.tensor([3.0]), torch.randn(2, 5, 128))
