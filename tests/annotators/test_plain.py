"""Annotators without weights: what the reference implementations give, and what each one means."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack import annotators
from controlnet_pack.annotators import AnnotatorError, annotate

GOLDEN = np.load(Path(__file__).with_name("data") / "plain.npz")
CASES = [name for name in GOLDEN.files if name not in ("picture", "opencv")]
SAME_OPENCV = str(GOLDEN["opencv"]) == cv2.__version__


@pytest.fixture
def picture() -> np.ndarray:
    return GOLDEN["picture"]


def value(text: str) -> int | float:
    return float(text) if "." in text else int(text)


@pytest.mark.parametrize("case", CASES)
def test_is_the_reference(picture, case):
    """Bit for bit with the OpenCV of the record; others may round a grey level otherwise."""
    name, _, given = case.partition("/")
    params = {key: value(text) for key, text in (one.split("=") for one in given.split(",") if one)}
    hint = annotate(name, picture, **params)
    expected = GOLDEN[case] if GOLDEN[case].ndim == 3 else GOLDEN[case][..., None]
    far = np.abs(hint.astype(int) - expected) > (0 if SAME_OPENCV else 1)
    assert far.mean() <= (0 if SAME_OPENCV else 0.005)


def test_otsu_finds_the_gap_between_two_greys():
    image = np.full((16, 16, 3), 90, np.uint8)
    image[:8] = 140
    for name in ("threshold", "binary"):
        assert np.array_equal(annotate(name, image, threshold=0)[:, 0, 0], [255] * 8 + [0] * 8)


def test_invert_twice_is_the_picture(picture):
    assert np.array_equal(annotators.invert(annotators.invert(picture)), picture)


def test_grey_is_the_brightness():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert annotators.grey(image)[0, :, 0].tolist() == [76, 150, 29]


def test_luminance_takes_red_for_red():
    red, blue = np.array([[[255, 0, 0]]], np.uint8), np.array([[[0, 0, 255]]], np.uint8)
    lightness = [annotators.recolor_luminance(one)[0, 0, 0] for one in (red, blue)]
    assert np.abs(np.subtract(lightness, [135, 82])).max() <= 2  # CIELAB L* 53.2 and 32.3 %


@pytest.mark.parametrize("seed", [0, 1])
def test_every_seed_is_a_seed(picture, seed):
    shuffled = annotators.shuffle(picture, seed=seed)
    assert np.array_equal(shuffled, annotators.shuffle(picture, seed=seed))
    assert not np.array_equal(shuffled, annotators.shuffle(picture, seed=seed + 1))


def test_shuffling_leaves_the_colours(picture):
    shuffled = annotators.shuffle(picture, seed=3)
    assert shuffled.min() >= picture.min()
    assert shuffled.max() <= picture.max()
    assert not np.array_equal(shuffled, picture)


def test_tile_without_steps_is_the_picture(picture):
    assert np.array_equal(annotators.tile(picture, pyrup_iters=0), picture)


def test_down_sampling_takes_the_means_of_squares():
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2] = 200
    assert np.array_equal(
        annotators.tile(image, pyrup_iters=0, down_sampling_rate=2.0), np.full_like(image, 100)
    )


@pytest.mark.parametrize("size", [(65, 127), (33, 47), (7, 1)])
@pytest.mark.parametrize("levels", [1, 3, 10])
def test_tile_keeps_odd_sizes_and_plain_colours(size, levels):
    image = np.full((*size, 3), (10, 100, 200), np.uint8)
    assert np.array_equal(annotators.tile(image, pyrup_iters=levels), image)


def test_cells_have_one_colour(picture):
    hint = annotators.color_grid(picture, cell=32)
    cells = hint.reshape(2, 32, 4, 32, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    assert len(np.unique(cells[:, 0, :, 0].reshape(-1, 3), axis=0)) == 8


@pytest.mark.parametrize(("convention", "mark"), [("minus_one", -1), ("black", 0)])
def test_masked_pixels_are_marked(picture, convention, mark):
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[:20], mask[20:40] = 255, 127
    hint = annotate("inpaint", picture, mask=mask, convention=convention)
    assert hint.dtype == np.float32
    assert (hint[:20] == mark).all()
    assert np.array_equal(hint[20:], picture[20:].astype(np.float32) / np.float32(255))


def test_masks_of_a_batch_and_of_other_sizes(picture):
    batch = np.stack([picture, picture])
    masks = np.stack([np.ones((8, 8)), np.zeros((8, 8))]).astype(np.float32)
    hints = annotate("inpaint", batch, mask=masks)
    assert [(hint == -1).mean() for hint in hints] == [1, 0]
    at_half = annotate("inpaint", picture, mask=masks[:1], resolution=32)
    assert at_half.shape == (32, 64, 3)
    assert (at_half == -1).all()


@pytest.mark.parametrize(
    ("name", "mask", "sentence"),
    [
        ("inpaint", None, "inpaint needs a mask: white where it has to act."),
        ("canny", np.zeros((64, 128), np.uint8), "canny takes no mask: leave it out."),
        ("inpaint", np.zeros((1, 2, 3, 4), np.uint8), r"The mask has the shape \(1, 2, 3, 4\), "
         r"but it has to be \(height, width\) or \(pictures, height, width\)."),
        ("inpaint", np.zeros((3, 8, 8), np.uint8), "There are 3 masks for 1 pictures: give one "
         "mask to all, or one to each."),
        ("inpaint", np.zeros((8, 8), np.int64), r"The mask's values are int64; convert them to "
         r"uint8 \(0 to 255\), to bool, or to floats from 0 to 1."),
        ("inpaint", np.full((8, 8), 2.0), "The mask's floats go from 2 to 2, but they have to be "
         "from 0 to 1: divide by 255, or convert to uint8."),
        ("inpaint", np.full((8, 8), np.nan), "The mask holds NaN or infinity: something before "
         "this step has failed."),
    ],
)  # fmt: skip
def test_masks_that_are_refused(picture, name, mask, sentence):
    with pytest.raises(AnnotatorError, match=f"^{sentence}$"):
        annotate(name, picture, mask=mask)


@pytest.mark.parametrize("name", ["canny", "pyracanny"])
def test_thresholds_the_wrong_way_round_are_turned(picture, name):
    hint = annotate(name, picture, low_threshold=150, high_threshold=60)
    assert np.array_equal(hint, annotate(name, picture, low_threshold=60, high_threshold=150))


def test_segments_of_a_square():
    image = np.zeros((96, 96, 3), np.uint8)
    image[24:72, 24:72] = 255
    found = annotators.line_segments(image)[..., 0] > 0
    assert found[22:27, 30:66].any(axis=0).all()
    assert found[30:66, 22:27].any(axis=1).all()
    assert not found[32:64, 32:64].any()
    assert not annotators.line_segments(image, min_length=60).any()


def test_a_slope_is_seen_in_its_colours():
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    right = annotators.normal_from_depth(ramp, order="xyz")[32, 32].astype(int)
    down = annotators.normal_from_depth(ramp.T.copy(), order="xyz")[32, 32].astype(int)
    assert right[0] > 140
    assert abs(right[1] - 127) <= 1
    assert right[2] > 200
    assert down.tolist() == right[[1, 0, 2]].tolist()
    midas = annotators.normal_from_depth(ramp)[32, 32]
    assert midas.tolist() == right[::-1].tolist()


def test_flat_depth_looks_at_the_viewer():
    flat = annotators.normal_from_depth(np.full((8, 8, 3), 77, np.uint8), order="xyz")
    assert (flat == [127, 127, 255]).all()


# Middlebury 2014, motorcycle, as scikit-image has it: pixels, and millimetres.
FOCAL, CENTRE, OFFSET, BASELINE = 994.978, (311.193, 254.877), 31.086, 193.001


def true_normals(disparity: np.ndarray) -> np.ndarray:
    """(H, W, 3): x right, y down, z away; of the surface that a measured disparity (H, W) shows."""
    rows, columns = np.indices(disparity.shape)
    away = FOCAL * BASELINE / (disparity + OFFSET)
    points = np.stack(
        [(columns - CENTRE[0]) * away / FOCAL, (rows - CENTRE[1]) * away / FOCAL, away], axis=-1
    )
    down, right = np.gradient(points, axis=(0, 1))
    normals = np.cross(down, right)  # towards the camera
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)


def test_normals_of_a_real_scene():
    """The slopes lie where the true surface turns: on x and y the colours mirror its normals."""
    data = pytest.importorskip("skimage.data", reason="scikit-image has the measured disparity")
    _, _, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    near = np.where(known, disparity, 0).astype(np.float32)
    # Means of what is known around each pixel: steps of the measurement would be slopes.
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), 4)
    smooth = cv2.GaussianBlur(near, (0, 0), 4) / np.maximum(weight, 1e-6)
    picture = np.rint(255 * smooth / smooth.max()).astype(np.uint8)
    found = annotators.normal_from_depth(picture, order="xyz", bg_threshold=0.0)
    slopes = cv2.GaussianBlur(found[..., :2].astype(np.float32) - 127.5, (0, 0), 4)
    turned = true_normals(smooth)
    steep = (weight > 0.99) & (np.linalg.norm(slopes, axis=-1) > 4) & (turned[..., 2] > -0.9)
    assert steep.sum() > 20_000
    across = turned[..., :2]
    cosine = (slopes * across).sum(-1) / (
        np.linalg.norm(slopes, axis=-1) * np.linalg.norm(across, axis=-1) + 1e-9
    )
    assert np.median(cosine[steep]) < -0.9
