"""Inpaint hints: masked pixels marked as the net was trained."""

import pytest
import torch

from controlnet_pack.cldm_core import CldmError, ShapeError
from controlnet_pack.cldm_core.fitting import fit_hint
from controlnet_pack.cldm_core.inpainting import CONVENTIONS, inpaint_hint

from .hint_samples import photo


def half_mask(count: int = 1, height: int = 8, width: int = 12) -> torch.Tensor:
    """The left half masked."""
    mask = torch.zeros(count, height, width)
    mask[..., : width // 2] = 1
    return mask


@pytest.mark.parametrize(("convention", "value"), [("minus one", -1), ("black", 0)])
def test_masked_pixels_have_the_convention_s_value(convention: str, value: float) -> None:
    hint = inpaint_hint(photo(8, 12), half_mask(), convention)
    assert (hint[..., :6] == value).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_other_pixels_stay(convention: str) -> None:
    image = photo(8, 12)
    hint = inpaint_hint(image, half_mask(), convention)
    assert torch.equal(hint[..., 6:], image[..., 6:])


def test_half_masked_pixels_are_not_masked() -> None:
    mask = torch.tensor([[[0.0, 0.5, 0.51, 1.0]]])
    hint = inpaint_hint(torch.ones(1, 3, 1, 4), mask, "minus one")
    assert hint[0, 0, 0].tolist() == [1, 1, -1, -1]


def test_a_mask_of_another_size_gets_no_new_edges() -> None:
    hint = inpaint_hint(photo(16, 24), half_mask(), "minus one")
    assert torch.equal(hint == -1, half_mask(1, 16, 24)[:, None].bool().expand(1, 3, 16, 24))


def test_one_mask_is_for_all_pictures() -> None:
    hint = inpaint_hint(photo(8, 12, batch=3), half_mask(), "black")
    assert (hint[..., :6] == 0).all()


def test_each_picture_has_its_mask() -> None:
    masks = torch.cat([half_mask(), 1 - half_mask()])
    hint = inpaint_hint(photo(8, 12, batch=2), masks, "minus one")
    assert torch.equal((hint == -1).all(dim=1), masks.bool())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_picture_s_type_stays(dtype: torch.dtype) -> None:
    assert inpaint_hint(photo(8, 12).to(dtype), half_mask(), "minus one").dtype == dtype


def test_picture_and_mask_are_left_as_they_were() -> None:
    image, mask = photo(8, 12), half_mask()
    inpaint_hint(image, mask, "minus one")
    assert torch.equal(image, photo(8, 12))
    assert torch.equal(mask, half_mask())


def test_an_inpaint_hint_that_is_fitted_is_marked_as_before() -> None:
    hint = inpaint_hint(photo(16, 24), half_mask(), "minus one")
    assert torch.equal(
        fit_hint(hint, 48, 32) == -1, fit_hint(hint, 48, 32, resampling="nearest") == -1
    )


def test_other_conventions_are_refused() -> None:
    with pytest.raises(CldmError, match="convention is 'grey', expected one of minus one, black"):
        inpaint_hint(photo(8, 12), half_mask(), "grey")


def test_masks_of_another_count_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 masks were given for 3 pictures: give one, or one"):
        inpaint_hint(photo(8, 12, batch=3), half_mask(2), "black")


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"The mask is .* expected floating-point numbers \(M, h"):
        inpaint_hint(photo(8, 12), half_mask()[:, None], "black")


def test_masks_of_another_range_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"The mask's values go from 0 to 255, expected \[0, 1\]"):
        inpaint_hint(photo(8, 12), half_mask() * 255, "black")


def test_pictures_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"The picture is .* expected floating-point numbers"):
        inpaint_hint(photo(8, 12)[0], half_mask(), "black")


def test_pictures_of_another_range_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"The picture's values go from -1 to 1, expected"):
        inpaint_hint(torch.linspace(-1, 1, 96).reshape(1, 1, 8, 12), half_mask(), "black")
