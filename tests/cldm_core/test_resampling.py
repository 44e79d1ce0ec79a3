"""What a hint shows decides how it is resampled: lines, masks, maps, photos, marked pixels."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from controlnet_pack.cldm_core.edges import is_one_pixel_drawing, resize_lines, thinned
from controlnet_pack.cldm_core.fitting import FITS, RESAMPLINGS, fit_hint

from .hint_samples import as_hint, as_page, drawn, marked_photo, photo, ramp
from .seeded import seeded_tensor

SIZES = [(512, 768), (512, 640), (768, 512), (512, 1024), (512, 513)]


def lines_in(page: np.ndarray) -> int:
    return cv2.connectedComponents((page > 0).astype(np.uint8), connectivity=8)[0] - 1


def loops_in(page: np.ndarray) -> int:
    """Regions that lines part from the outside."""
    outside = np.pad(page == 0, 1, constant_values=True).astype(np.uint8)
    return cv2.connectedComponents(outside, connectivity=4)[0] - 2


def colours(hint: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(pixel.tolist()) for pixel in hint[0].flatten(1).T}


# ---- one-pixel drawings


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_no_line_breaks_or_joins(old: int, new: int) -> None:
    page = drawn(old)
    assert lines_in(as_page(fit_hint(as_hint(page), new, new))) == lines_in(page)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_no_loop_opens_or_closes(old: int, new: int) -> None:
    page = drawn(old)
    assert loops_in(as_page(fit_hint(as_hint(page), new, new))) == loops_in(page)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_lines_stay_one_pixel_wide(old: int, new: int) -> None:
    page = drawn(old)
    fitted = as_page(fit_hint(as_hint(page), new, new))
    assert set(np.unique(fitted)) == {0, 1}
    strokes = np.count_nonzero(fitted) / np.count_nonzero(page)
    assert strokes == pytest.approx(new / old, rel=0.04)


@st.composite
def scribbles(draw: st.DrawFn) -> np.ndarray:
    """Any pixels of a small page, (H, W) of False and True."""
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    share, seed = draw(st.floats(0.05, 0.5)), draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).random((height, width)) < share


@settings(max_examples=150, deadline=None)
@given(scribbles(), st.integers(0, 25), st.integers(0, 25))
def test_whatever_grows_keeps_its_lines_and_loops(
    drawing: np.ndarray, more_rows: int, more_columns: int
) -> None:
    size = (drawing.shape[0] + more_rows, drawing.shape[1] + more_columns)
    grown = resize_lines(drawing, *size)
    assert grown.shape == size
    assert (lines_in(grown), loops_in(grown)) == (lines_in(drawing), loops_in(drawing))


@settings(max_examples=150, deadline=None)
@given(scribbles(), st.integers(1, 20), st.integers(1, 20))
def test_whatever_is_resized_breaks_nowhere(drawing: np.ndarray, height: int, width: int) -> None:
    resized = resize_lines(drawing, height, width)
    assert lines_in(resized) <= lines_in(drawing)
    assert resized.any() == drawing.any()


def test_nearest_breaks_such_lines() -> None:
    page = drawn(768)
    fitted = fit_hint(as_hint(page), 512, 512, resampling="nearest")
    assert lines_in(as_page(fitted)) > 10 * lines_in(page)


@pytest.mark.parametrize("new", [(768, 640), (300, 700), (640, 400)])
def test_lines_stay_whole_where_the_aspect_changes(new: tuple[int, int]) -> None:
    page = drawn(512)
    fitted = as_page(fit_hint(as_hint(page), *new, fit="stretch"))
    assert (lines_in(fitted), loops_in(fitted)) == (lines_in(page), loops_in(page))


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_lines_stay_in_their_place(old: int, new: int) -> None:
    page = drawn(old)
    fitted = as_page(fit_hint(as_hint(page), new, new))
    distance = cv2.distanceTransform(255 - page, cv2.DIST_L2, 5)
    rows, columns = ((places + 0.5) * old / new for places in np.nonzero(fitted))
    assert distance[rows.astype(int), columns.astype(int)].max() < 1 + old / new


@pytest.mark.parametrize("new", [48, 24])
def test_ends_of_lines_stay_where_they_are(new: int) -> None:
    page = np.zeros((32, 32), np.uint8)
    page[16, 4:29] = 255
    columns = np.nonzero(as_page(fit_hint(as_hint(page), new, new)).any(axis=0))[0]
    assert columns[0] == pytest.approx(4.5 * new / 32 - 0.5, abs=0.5)
    assert columns[-1] == pytest.approx(28.5 * new / 32 - 0.5, abs=0.5)


def test_a_straight_line_stays_straight() -> None:
    page = np.zeros((32, 32), np.uint8)
    page[10, 3:30] = 255
    assert np.count_nonzero(as_page(fit_hint(as_hint(page), 48, 48)).any(axis=1)) == 1


def test_a_dot_stays_a_dot() -> None:
    page = np.zeros((32, 32), np.uint8)
    page[10, 20] = 255
    assert np.count_nonzero(as_page(fit_hint(as_hint(page), 80, 80))) == 1


def test_black_lines_on_white_are_lines_too() -> None:
    page = drawn(512)
    fitted = as_page(fit_hint(as_hint(255 - page), 768, 768))
    assert np.array_equal(1 - fitted, as_page(fit_hint(as_hint(page), 768, 768)))


def test_lines_keep_their_colours() -> None:
    page = drawn(256)[None] / 255.0
    ink, paper = np.array([0.2, 0.9, 0.4]), np.array([0.1, 0.0, 0.3])
    picture = paper[:, None, None] + (ink - paper)[:, None, None] * page
    hint = torch.from_numpy(picture[None]).float()
    assert colours(fit_hint(hint, 384, 384)) == colours(hint)


def test_lines_of_a_crop_are_whole() -> None:
    page = drawn(512)
    fitted = as_page(fit_hint(as_hint(page), 768, 512))
    assert lines_in(fitted) == lines_in(page[85:427])


def test_each_picture_of_a_batch_is_treated_by_what_it_shows() -> None:
    batch = torch.cat([as_hint(drawn(64)), photo(64, 64)])
    fitted = fit_hint(batch, 96, 96)
    assert torch.equal(fitted[:1], fit_hint(batch[:1], 96, 96))
    assert torch.equal(fitted[1:], fit_hint(batch[1:], 96, 96))
    assert fitted[0].unique().numel() == 2


def test_a_blob_is_no_drawing_of_lines() -> None:
    page = np.zeros((64, 64), np.uint8)
    cv2.circle(page, (32, 32), 10, 255, -1)
    assert not is_one_pixel_drawing(page > 0)
    assert is_one_pixel_drawing(drawn(64) > 0)


def test_a_chequered_page_is_no_drawing_of_lines() -> None:
    assert not is_one_pixel_drawing(np.indices((32, 32)).sum(axis=0) % 2 == 0)


def test_thinning_leaves_the_middle_of_a_bar() -> None:
    bar = np.zeros((9, 30), np.bool_)
    bar[3:6, 5:25] = True
    weights = cv2.GaussianBlur(bar.astype(np.float32), (0, 0), 1)
    line = thinned(bar, weights, np.zeros_like(bar), keep_ends=True)
    assert np.nonzero(line.any(axis=1))[0].tolist() == [4]
    assert line.sum() >= 16


def test_thinning_keeps_fixed_pixels() -> None:
    bar = np.zeros((9, 30), np.bool_)
    bar[3:6, 5:25] = True
    fixed = np.zeros_like(bar)
    fixed[3, 5] = fixed[5, 24] = True
    line = thinned(bar, np.ones(bar.shape, np.float32), fixed)
    assert line[fixed].all()
    assert lines_in(line) == 1


# ---- masks, maps, photos


@pytest.mark.parametrize("new", [96, 100, 40])
def test_a_mask_stays_binary_and_as_large(new: int) -> None:
    page = np.zeros((64, 64), np.uint8)
    cv2.circle(page, (30, 34), 18, 255, -1)
    fitted = fit_hint(as_hint(page), new, new)
    assert fitted.unique().tolist() == [0, 1]
    assert fitted.mean().item() == pytest.approx((page > 0).mean(), rel=0.05)


@pytest.mark.parametrize("new", [96, 100, 40])
def test_a_map_of_segments_gets_no_new_colours(new: int) -> None:
    palette = seeded_tensor((20, 3), "palette", 0).sigmoid()
    labels = torch.arange(64)[:, None] // 8 + torch.arange(64)[None] // 6
    hint = palette[labels % 20].permute(2, 0, 1)[None]
    assert colours(fit_hint(hint, new, new)) <= colours(hint)


def test_a_flat_picture_stays_flat() -> None:
    hint = torch.full((1, 3, 16, 16), 0.3)
    assert torch.equal(fit_hint(hint, 24, 24), torch.full((1, 3, 24, 24), 0.3))


def test_a_photo_that_shrinks_is_averaged() -> None:
    hint = photo(64, 64)
    wanted = torch.nn.functional.avg_pool2d(hint, 4)
    torch.testing.assert_close(fit_hint(hint, 16, 16), wanted)


def test_a_photo_that_grows_is_interpolated_by_cubics() -> None:
    hint = photo(24, 24)
    wanted = torch.nn.functional.interpolate(hint, (36, 36), mode="bicubic")
    torch.testing.assert_close(
        fit_hint(hint, 36, 36), wanted.clamp(hint.min(), hint.max()), rtol=0, atol=1e-5
    )


def test_a_photo_is_averaged_along_the_side_that_shrinks_only() -> None:
    hint = ramp(64, 256) * torch.linspace(0.5, 1, 64)[:, None]
    fitted = fit_hint(hint, 64, 96, fit="stretch")
    assert fitted[0, 0, 48, 32].item() == pytest.approx(hint[0, 0, 32, 130].item(), abs=0.01)


# ---- inpaint hints


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("new", [(36, 48), (16, 16), (40, 24)])
def test_nothing_comes_between_marked_and_picture(
    fit: str, resampling: str, new: tuple[int, int]
) -> None:
    fitted = fit_hint(marked_photo(), *new, fit=fit, resampling=resampling)
    marked = fitted == -1
    assert torch.equal(marked.any(1), marked.all(1))
    assert fitted[~marked].min() >= 0.5
    assert marked.any()


def test_marked_pixels_are_those_that_nearest_gives() -> None:
    hint = marked_photo()
    auto, nearest = (fit_hint(hint, 40, 32, resampling=name) for name in RESAMPLINGS)
    assert torch.equal(auto == -1, nearest == -1)


def test_pictures_of_masked_pixels_alone_stay_so() -> None:
    hint = torch.full((1, 3, 16, 16), -1.0)
    assert torch.equal(fit_hint(hint, 24, 24), torch.full((1, 3, 24, 24), -1.0))


def test_bars_of_inpaint_hints_are_marked() -> None:
    fitted = fit_hint(marked_photo(), 48, 24, fit="fill")
    assert (fitted[..., :12] == -1).all()
    assert (fitted[..., 36:] == -1).all()


def test_pictures_from_minus_one_to_one_are_no_inpaint_hints() -> None:
    hint = photo(24, 24) * 2 - 1
    hint[:, :, 3:9, 3:9] = -1
    fitted = fit_hint(hint, 48, 24, fit="fill")
    assert (fitted[..., 0] > -1).all()
