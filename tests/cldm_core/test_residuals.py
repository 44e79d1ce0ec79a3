"""Arithmetic on residuals that are added inside the encoder, as T2I-Adapters have them."""

import pytest
import torch

from controlnet_pack.cldm_core import Residuals, ShapeError, merge, pool, weigh


def of_an_adapter() -> Residuals:
    """As SDXL's: behind three of the encoder's blocks and behind the middle."""
    places = {3: torch.rand(1, 2, 4, 4), 5: torch.rand(1, 3, 4, 4), 8: torch.rand(1, 4, 2, 2)}
    slot = tuple(places.get(index) for index in range(9))
    return Residuals(input=slot, middle=(torch.rand(1, 4, 2, 2),))


def test_one_strength_scales_every_feature() -> None:
    residuals = of_an_adapter()
    half = weigh(residuals, 0.5)
    for a, b in zip(
        (*half.input, *half.middle), (*residuals.input, *residuals.middle), strict=True
    ):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, 0.5 * b)


def test_each_feature_has_a_strength_of_its_own() -> None:
    residuals = of_an_adapter()
    weighed = weigh(residuals, (0.25, 0.62, 0.825, 1.0))
    found = [item for item in (*weighed.input, *weighed.middle) if item is not None]
    given = [item for item in (*residuals.input, *residuals.middle) if item is not None]
    for a, b, scale in zip(found, given, (0.25, 0.62, 0.825, 1.0), strict=True):
        assert torch.equal(a, b * scale)
    with pytest.raises(ShapeError, match="3 scales were given for 4 residuals"):
        weigh(residuals, (1.0, 1.0, 1.0))


def test_adapters_of_different_lengths_and_a_controlnet_merge() -> None:
    a = Residuals(input=(None, None, torch.ones(1, 2, 4, 4)))
    b = Residuals(input=(None, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4), None, torch.ones(1)))
    c = Residuals(output=(torch.ones(1), torch.ones(1)), middle=(torch.ones(1),))
    for merged in (merge(merge(a, b), c), merge(c, merge(b, a))):
        assert [None if item is None else float(item.max()) for item in merged.input] == [
            None,
            1.0,
            2.0,
            None,
            1.0,
        ]
        assert merged.output == c.output
        assert merged.middle == c.middle


def test_pooling_reaches_input() -> None:
    pooled = pool(Residuals(input=(None, torch.rand(1, 2, 4, 4))))
    assert pooled.input[0] is None
    assert pooled.input[1] is not None
    assert pooled.input[1].shape == (1, 2, 1, 1)
