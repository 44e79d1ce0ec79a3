"""Canny: bit for bit what OpenCV finds in the uint8 RGB picture, as the original annotator does."""

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import canny


def blurred_noise(height: int, width: int) -> np.ndarray:
    """Soft shapes in colour, so that both thresholds matter."""
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize(
    "thresholds", [(100, 200), (0, 0), (0, 255), (50, 50), (255, 255), (255, 200)]
)
@pytest.mark.parametrize("size", [(1, 1), (31, 77), (256, 256)])
def test_is_opencv(size, thresholds):
    image = blurred_noise(*size)
    low, high = thresholds
    edges = cv2.Canny(image, low, high)
    hint = canny(image, low_threshold=low, high_threshold=high)
    assert np.array_equal(hint, np.stack([edges] * 3, axis=-1))


def test_thresholds_are_100_and_200_unless_given():
    image = blurred_noise(64, 64)
    edges = cv2.Canny(image, 100, 200)
    assert 0 < np.count_nonzero(edges) < edges.size
    assert np.array_equal(canny(image)[..., 0], edges)


def test_outline_of_a_square():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 255
    edges = canny(image)[..., 0] > 0
    assert edges[7:9, 8:24].any(axis=0).all()
    assert not edges[12:20, 12:20].any()
    assert not edges[:6].any()


def test_transparent_is_white():
    square = np.zeros((32, 32, 4), np.uint8)
    square[8:24, 8:24, 3] = 255
    on_white = np.full((32, 32, 3), 255, np.uint8)
    on_white[8:24, 8:24] = 0
    assert canny(square).any()
    assert np.array_equal(canny(square), canny(on_white))


def test_half_transparent_is_laid_on_white():
    image = np.full((16, 16, 4), (174, 174, 174, 255), np.uint8)
    image[:, 8:] = (50, 50, 50, 101)  # 50 * 101/255 + 255 * 154/255 = 173.8
    assert not canny(image, low_threshold=1, high_threshold=1).any()
    image[:, 8:, 3] -= 1
    assert canny(image, low_threshold=1, high_threshold=1).any()
