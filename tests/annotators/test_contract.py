"""What holds for every annotator: the registry, pictures in and out, parameters, refusals."""

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from torch import nn

from controlnet_pack import annotators
from controlnet_pack.annotators import (
    ANNOTATORS,
    Annotator,
    AnnotatorError,
    Choice,
    Flag,
    Param,
    annotate,
)
from controlnet_pack.annotators.pictures import working_size

from .conftest import giving
from .pictures import picture
from .seeded import SEEDED


@pytest.fixture(params=ANNOTATORS)
def record(request):
    return ANNOTATORS[request.param]


@pytest.fixture(scope="module", params=ANNOTATORS)
def annotator(request, tmp_path_factory):
    """An annotator at the picture's own size, with a mask or seeded weights where it needs them."""
    found = ANNOTATORS[request.param]

    def annotated(image, **params):
        if found.needs_mask:
            params["mask"] = np.tri(9, 7, dtype=np.uint8) * 255
        if found.weights:
            params["device"] = "cpu"
        return found(image, **{"resolution": 0, **params})

    annotated.record = found
    folder = tmp_path_factory.mktemp(found.name)
    with giving(folder) as give, pytest.MonkeyPatch.context() as patch:
        if found.weights:
            SEEDED[found.name](give, patch)
        yield annotated


def assert_refused(sentence: str, image=None, name="canny", **params) -> None:
    with pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$"):
        annotate(name, picture(8, 8, 3) if image is None else image, **params)


def test_public_names_exist():
    for name in annotators.__all__:
        assert hasattr(annotators, name)


def test_record(record):
    assert ANNOTATORS[record.name] is getattr(annotators, record.name) is record
    assert record.title
    assert record.description.endswith(".")
    assert "resolution" in record.settings
    for setting in record.settings.values():
        assert setting.help
        assert setting.checked("it", setting.default) == setting.default
        if isinstance(setting, Choice):
            assert len(set(setting.choices)) == len(setting.choices) > 1


def test_record_of_weights(record):
    for weights in record.weights:
        assert weights.licence
        assert "https://" in weights.page
        assert weights.sha256 is None or re.fullmatch("[0-9a-f]{64}", weights.sha256)
        assert weights.commercial or weights.file in record.about


def test_record_is_frozen(record):
    with pytest.raises(FrozenInstanceError):
        record.name = "other"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (33, 47), (64, 64)])
def test_any_size(annotator, height, width):
    hint = annotator(picture(height, width, 3))
    assert hint.shape == (height, width, 3)
    assert hint.dtype == annotator.record.dtype


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (33, 47)])
def test_resolution_is_the_short_side(annotator, height, width):
    hint = annotator(picture(height, width, 3), resolution=24)
    scale = 24 / min(height, width)
    assert hint.shape == (round(height * scale), round(width * scale), 3)


def test_large_picture_at_a_resolution(annotator):
    large = np.broadcast_to(picture(1, 4096, 3), (4096, 4096, 3))
    side = 64 if annotator.record.weights else 512
    assert annotator(large, resolution=side).shape == (side, side, 3)


def test_strip_at_a_resolution():
    assert_refused(
        "A picture of 4096 x 1 would have 33554432 x 8192 pixels at the resolution 8192: lower it, "
        "or crop the picture.",
        picture(1, 4096, 3),
        resolution=8192,
    )


def test_batch_is_its_pictures_one_by_one(annotator, one_thread):
    batch = picture(3, 17, 20, 3)
    assert np.array_equal(annotator(batch), [annotator(frame) for frame in batch])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_is_the_same_picture_as_uint8(annotator, dtype):
    image = picture(16, 16, 4)
    assert np.array_equal(annotator(image.astype(dtype) / dtype(255)), annotator(image))


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1)])
def test_grey_is_three_equal_channels(annotator, shape):
    grey = picture(16, 16)
    rgb = np.stack([grey] * 3, axis=-1)
    assert np.array_equal(annotator(grey.reshape(shape)), annotator(rgb))


def test_opaque_rgba_is_rgb(annotator):
    rgba = picture(16, 16, 4)
    rgba[..., 3] = 255
    assert np.array_equal(annotator(rgba), annotator(rgba[..., :3]))


def test_any_memory_layout(annotator):
    image = picture(16, 16, 4)[::-1, ::2, 2::-1]
    assert np.array_equal(annotator(image), annotator(np.ascontiguousarray(image)))


@pytest.mark.parametrize(("side", "channels"), [(64, 3), (16, 4)])
def test_input_is_left_alone(annotator, side, channels):
    image = picture(2, side, side, channels)
    image.flags.writeable = False
    before = image.copy()
    hint = annotator(image)
    assert np.array_equal(image, before)
    assert not np.shares_memory(hint, image)


def test_pictures_of_the_right_size_are_not_copied():
    seen = []

    def run(images):
        seen.append(images)
        return 255 - images

    batch = picture(3, 16, 20, 3)
    Annotator("it", "It", "It does.", run, batched=True)(batch, resolution=16)
    assert np.shares_memory(seen[0], batch)


def test_same_hint_every_time(annotator):
    image = picture(32, 32, 3)
    assert np.array_equal(annotator(image), annotator(image))


@pytest.mark.parametrize("end", ["min", "max"])
def test_ends_of_every_range(annotator, end):
    params = annotator.record.params
    ends = {name: getattr(one, end) for name, one in params.items() if isinstance(one, Param)}
    for told in (ends, *({name: value} for name, value in ends.items())):
        assert annotator(picture(16, 16, 3), **told).shape == (16, 16, 3)


def test_smallest_resolution(annotator):
    assert annotator(picture(16, 20, 3), resolution=1).shape == (1, 1, 3)


def test_largest_resolution_is_of_the_largest_square():
    largest = ANNOTATORS["canny"].settings["resolution"].max
    assert working_size(16, 16, largest) == (largest, largest)
    with pytest.raises(AnnotatorError, match=f"at the resolution {largest}: lower it"):
        working_size(16, 17, largest)


ON_PROCESSORS = (
    *("depth_anything", "depth_anything_v2", "midas", "midas_normal", "normal_bae", "oneformer"),
    *("segments", "uniformer", "zoe"),
)


@pytest.mark.parametrize("annotator", ON_PROCESSORS, indirect=True)
def test_networks_are_given_pictures_one_by_one_on_a_processor(annotator):
    counts = set()

    def look(module, inputs):
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            counts.add(len(inputs[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        annotator(picture(3, 17, 20, 3))
    finally:
        handle.remove()
    assert counts == {1}


def test_every_choice(annotator):
    for name, setting in annotator.record.params.items():
        for choice in setting.choices if isinstance(setting, Choice) else ():
            assert annotator(picture(16, 16, 3), **{name: choice}).shape == (16, 16, 3)


def test_every_flag(annotator):
    for name, setting in annotator.record.params.items():
        if isinstance(setting, Flag):
            hint = annotator(picture(16, 16, 3), **{name: not setting.default})
            assert hint.shape == (16, 16, 3)


def test_finds_something_in_noise_or_in_blocks(annotator):
    blocks = picture(3, 3, 3).repeat(32, axis=0).repeat(32, axis=1)
    hints = [annotator(image) for image in (picture(64, 64, 3), blocks)]
    assert any(hint.min() < hint.max() for hint in hints)


@pytest.mark.parametrize(("end", "step"), [("min", -1), ("max", 1)])
def test_beyond_every_range(record, end, step):
    for name, param in record.settings.items():
        if isinstance(param, Param):
            value = getattr(param, end) + step
            assert_refused(
                f"{name} is {value}, but it has to be from {param.min} to {param.max}.",
                name=record.name,
                **{name: value},
            )


@pytest.mark.parametrize("value", [99.5, True, "100", None])
def test_parameter_of_another_kind(value):
    assert_refused(
        f"low_threshold is {value!r}, but it has to be a whole number.", low_threshold=value
    )


def test_unknown_parameter():
    assert_refused(
        "canny has no parameter 'threshold'; did you mean 'low_threshold'? "
        "It has: low_threshold, high_threshold, resolution.",
        threshold=1,
    )


def test_unknown_annotator():
    names = ", ".join(ANNOTATORS)
    assert_refused(
        f"There is no annotator 'cany'; did you mean 'canny'? The annotators are: {names}.",
        name="cany",
    )
    assert_refused(f"There is no annotator 'xyz'. The annotators are: {names}.", name="xyz")


@pytest.mark.parametrize("shape", [(), (8,), (8, 8, 2), (8, 8, 5), (2, 8, 8), (1, 2, 8, 8, 3)])
def test_shape_of_no_picture(shape):
    assert_refused(
        f"The picture has the shape {shape}, but it has to be (height, width, channels) "
        "or (pictures, height, width, channels), with 1, 3 or 4 channels last.",
        np.zeros(shape, np.uint8),
    )


def test_a_list_is_a_batch_if_its_pictures_are_of_one_size():
    assert annotate("invert", [picture(8, 9, 3)] * 2).shape == (2, 8, 9, 3)
    assert_refused(
        "The pictures of a batch have to be of one size: give them one by one, or resize them.",
        [picture(8, 9, 3), picture(9, 8, 3)],
    )


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (0, 8, 8, 3)])
def test_empty_picture(shape):
    assert_refused(
        f"The picture has the shape {shape}: there is nothing in it.", np.zeros(shape, np.uint8)
    )


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint16, np.complex64])
def test_values_of_another_type(dtype):
    assert_refused(
        f"The picture's values are {np.dtype(dtype)}; convert them to uint8 (0 to 255) "
        "or to floats from 0 to 1.",
        np.zeros((8, 8, 3), dtype),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 3)])
def test_not_a_number(value, shape):
    image = np.zeros(shape, np.float32)
    image[..., 3, 4, 1] = value
    assert_refused(
        "The picture holds NaN or infinity: something before this step has failed.", image
    )


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_floats_outside_the_range(low, high):
    assert_refused(
        f"The picture's floats go from {low} to {high}, but they have to be from 0 to 1: "
        "divide by 255, or convert to uint8.",
        np.linspace(low, high, 192, dtype=np.float32).reshape(8, 8, 3),
    )
