"""Foreground mask: from the alpha channel, or from the colour of the border."""

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import mask

WHITE = (255, 255, 255)


def disc(background=WHITE, colour=(200, 40, 30), size=64, radius=20) -> np.ndarray:
    image = np.full((size, size, 3), background, np.uint8)
    return cv2.circle(image, (size // 2, size // 2), radius, colour, -1)


def white(hint: np.ndarray) -> np.ndarray:
    """(H, W) bool, after checking that the hint is black and white with equal channels."""
    assert np.isin(hint, (0, 255)).all()
    assert (hint == hint[..., :1]).all()
    return hint[..., 0] == 255


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), (40, 160, 90)])
def test_subject_on_a_plain_colour(background):
    image = disc(background)
    assert np.array_equal(white(mask(image)), (image != background).any(axis=-1))


def test_holes_belong_to_the_subject():
    ring = cv2.circle(disc(), (32, 32), 10, WHITE, -1)
    assert np.array_equal(mask(ring), mask(disc()))


def test_an_outline_of_one_pixel_holds():
    image = np.full((64, 64, 3), 255, np.uint8)
    outline = cv2.ellipse(image, (32, 32), (25, 15), 30, 0, 360, (0, 0, 0), 1, cv2.LINE_8)
    assert white(mask(outline))[32, 32]


def test_subject_that_touches_the_border():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[20:, 10:40] = (30, 60, 90)
    assert np.array_equal(white(mask(image)), (image != WHITE).any(axis=-1))


def test_colour_of_most_of_the_border_is_the_background():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:30, :30] = (30, 60, 90)
    assert np.array_equal(white(mask(image)), (image != WHITE).any(axis=-1))


def test_background_on_both_sides_of_the_subject():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[:, 30:34] = 0
    assert np.array_equal(white(mask(image)), (image == 0).all(axis=-1))


@pytest.mark.parametrize(("difference", "found"), [(10, False), (11, True)])
def test_tolerance_is_the_last_difference_of_the_background(difference, found):
    image = disc(colour=(255, 255 - difference, 255))
    assert white(mask(image)).any() == found
    assert white(mask(image, tolerance=difference - 1)).any()


def test_noise_within_the_tolerance():
    noise = np.random.default_rng(2).integers(-9, 1, (64, 64, 3))
    image = (disc().astype(np.int16) + noise).clip(0, 255).astype(np.uint8)
    assert np.array_equal(mask(image), mask(disc()))


def test_plain_picture_has_no_subject():
    assert not mask(np.full((16, 16, 3), 77, np.uint8)).any()


def test_alpha_is_the_mask():
    rgba = np.dstack([disc(), np.full((64, 64), 255, np.uint8)])
    rgba[:10, :, 3] = 127
    rgba[10:20, :, 3] = 128
    assert np.array_equal(white(mask(rgba)), rgba[..., 3] >= 128)


def test_transparent_everywhere():
    assert not mask(np.zeros((16, 16, 4), np.uint8)).any()


def test_opaque_alpha_says_nothing():
    rgba = np.dstack([disc(), np.full((64, 64), 255, np.uint8)])
    assert np.array_equal(mask(rgba), mask(disc()))
