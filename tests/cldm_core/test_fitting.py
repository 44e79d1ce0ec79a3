"""Hints at another size: what is seen of them, and that nothing breaks in them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlnet_pack.cldm_core import CldmError, ShapeError
from controlnet_pack.cldm_core.fitting import (
    FITS,
    RESAMPLINGS,
    crop_hint,
    fit_hint,
    pixel_perfect,
)

from .hint_samples import as_hint, drawn, marked_photo, photo, ramp
from .seeded import seeded_tensor

SIDES = st.integers(1, 40)


# ---- size, type, and what a fit shows


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("fit", FITS)
@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(1, 3), st.integers(1, 5))
def test_the_result_has_the_size_asked_for_and_stays_in_range(
    fit: str, resampling: str, h: int, w: int, height: int, width: int, batch: int, channels: int
) -> None:
    hint = seeded_tensor((batch, channels, h, w), "any", 0).sigmoid()
    fitted = fit_hint(hint, width, height, fit=fit, resampling=resampling)
    assert fitted.shape == (batch, channels, height, width)
    assert fitted.min() >= hint.min()
    assert fitted.max() <= hint.max()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays(fit: str, dtype: torch.dtype) -> None:
    assert fit_hint(photo(12, 16).to(dtype), 24, 24, fit=fit).dtype == dtype


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_a_hint_of_the_right_size_is_returned_itself(fit: str, resampling: str) -> None:
    hint = photo(16, 24)
    assert fit_hint(hint, 24, 16, fit=fit, resampling=resampling) is hint


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_the_hint_is_left_as_it_was(fit: str, resampling: str) -> None:
    for hint in (photo(16, 24), as_hint(drawn(64)).clone(), marked_photo()):
        before = hint.clone()
        fit_hint(hint, 40, 32, fit=fit, resampling=resampling)
        assert torch.equal(hint, before)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_crop_cuts_both_sides_alike(resampling: str) -> None:
    fitted = fit_hint(ramp(256, 512), 128, 128, resampling=resampling)
    assert fitted[0, 0, 5, 0].item() == pytest.approx(0.25, abs=0.01)
    assert fitted[0, 0, 5, -1].item() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_stretch_shows_all_of_it(resampling: str) -> None:
    fitted = fit_hint(ramp(256, 512), 128, 128, fit="stretch", resampling=resampling)
    assert fitted[0, 0, 5, 0].item() == pytest.approx(0, abs=0.01)
    assert fitted[0, 0, 5, -1].item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_fill_shows_all_of_it_between_bars(resampling: str) -> None:
    fitted = fit_hint(ramp(256, 512), 128, 128, fit="fill", resampling=resampling)[0, 0]
    assert fitted[64, 0].item() == pytest.approx(0, abs=0.01)
    assert fitted[64, -1].item() == pytest.approx(1, abs=0.01)
    assert torch.equal(fitted[:32], fitted[:1, :1].expand(32, 128))
    assert torch.equal(fitted[96:], fitted[:1, :1].expand(32, 128))
    assert fitted[32].unique().numel() > 64


def test_bars_have_the_median_of_the_borders_by_channel() -> None:
    hint = torch.zeros(1, 2, 8, 16)
    hint[0, 0, 0] = 1
    hint[0, 1, :, 0] = hint[0, 1, 0] = hint[0, 1, -1] = 0.5
    hint[0, :, 2:6, 4:12] = 0.9
    bars = fit_hint(hint, 16, 16, fit="fill")[0, :, 0, 0]
    assert bars.tolist() == [0, 0.5]


def test_bars_of_a_batch_have_each_picture_s_colour() -> None:
    hint = torch.stack([torch.full((3, 8, 16), 0.25), torch.full((3, 8, 16), 0.75)])
    bars = fit_hint(hint, 16, 16, fit="fill")[:, 0, 0, 0]
    assert bars.tolist() == [0.25, 0.75]


def test_bars_of_a_mask_are_of_its_two_colours() -> None:
    mask = torch.zeros(1, 3, 8, 16)
    mask[..., 8:] = 1
    assert fit_hint(mask, 32, 32, fit="fill").unique().tolist() == [0, 1]


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_a_hint_far_longer_than_wide_keeps_a_pixel(resampling: str) -> None:
    assert fit_hint(photo(2, 300), 4, 400, resampling=resampling).shape == (1, 3, 400, 4)


# ---- nearest: what the host does


@pytest.mark.parametrize(
    ("old", "new", "rows", "columns"),
    [
        # From common_upscale(..., "nearest-exact", "center") of ComfyUI 0.3.64.
        ((6, 6), (4, 4), [0, 2, 3, 5], [0, 2, 3, 5]),
        ((6, 6), (4, 8), [2, 2, 3, 3], [0, 1, 1, 2, 3, 4, 4, 5]),
        ((5, 9), (3, 3), [0, 2, 4], [2, 4, 6]),
        ((9, 5), (7, 4), [0, 1, 3, 4, 5, 7, 8], [0, 1, 3, 4]),
    ],
)
def test_nearest_takes_the_host_s_pixels(
    old: tuple[int, int], new: tuple[int, int], rows: list[int], columns: list[int]
) -> None:
    hint = torch.arange(old[0] * old[1]).reshape(1, 1, *old).float()
    fitted = fit_hint(hint, new[1], new[0], resampling="nearest")
    assert torch.equal(fitted, hint[:, :, rows][..., columns])


# ---- pixel perfect, areas


@pytest.mark.parametrize(
    ("image", "target", "fit", "resolution"),
    [
        # By hand from k = max (fill: min) of H/h and W/w, times the short side.
        ((1080, 1920), (512, 768), "crop", 512),
        ((1080, 1920), (512, 768), "fill", 432),
        ((600, 400), (768, 768), "stretch", 768),
        ((600, 400), (768, 768), "fill", 512),
        ((333, 500), (512, 512), "crop", 512),
        ((500, 333), (512, 768), "crop", 768),
    ],
)
def test_the_resolution_that_needs_no_enlargement(
    image: tuple[int, int], target: tuple[int, int], fit: str, resolution: int
) -> None:
    assert pixel_perfect(*image, *target, fit=fit) == resolution


def test_the_part_of_a_hint_over_an_area() -> None:
    hint = photo(64, 96)
    part = crop_hint(hint, (3, 4, 2, 5))
    assert torch.equal(part, hint[:, :, 16:40, 40:72])
    assert part.untyped_storage().data_ptr() == hint.untyped_storage().data_ptr()


def test_areas_in_other_units() -> None:
    hint = photo(64, 96)
    assert torch.equal(crop_hint(hint, (3, 4, 2, 5), scale=1), hint[:, :, 2:5, 5:9])


# ---- errors


@pytest.mark.parametrize("area", [(9, 4, 0, 0), (4, 4, 0, 9), (4, 4, -1, 0), (0, 4, 0, 0)])
def test_areas_beyond_the_hint_are_refused(area: tuple[int, int, int, int]) -> None:
    with pytest.raises(ShapeError, match="beyond the hint of 96x64: fit the hint to the whole"):
        crop_hint(photo(64, 96), area)


@pytest.mark.parametrize(
    "hint", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_what_is_no_hint_is_refused(hint: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected floating-point numbers \(B, C, H, W\)"):
        fit_hint(hint, 16, 16)


def test_empty_targets_are_refused() -> None:
    with pytest.raises(ShapeError, match="to be fitted to 0x8: give sides of at least 1 pixel"):
        fit_hint(photo(8, 8), 0, 8)


def test_empty_pictures_have_no_resolution() -> None:
    with pytest.raises(ShapeError, match="The picture is 0x8, to be fitted to 8x8"):
        pixel_perfect(8, 0, 8, 8)


def test_unknown_fits_are_refused() -> None:
    with pytest.raises(CldmError, match="fit is 'squeeze', expected one of crop, stretch, fill"):
        fit_hint(photo(8, 8), 16, 16, fit="squeeze")


def test_unknown_resamplings_are_refused() -> None:
    with pytest.raises(CldmError, match="resampling is 'lanczos', expected one of auto, nearest"):
        fit_hint(photo(8, 8), 16, 16, resampling="lanczos")
