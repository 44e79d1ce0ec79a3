"""The circle data set: drawn from a seed, at any size, in memory and on disk."""

import re

import numpy as np
import pytest
from PIL import ImageColor

from controlnet_pack.cldm_core.errors import CldmError
from controlnet_pack.cldm_core.training.circles import (
    DISTANCE,
    CirclePairs,
    colours,
    write_circles,
)
from controlnet_pack.cldm_core.training.sources import open_source


def test_colours_are_those_of_css():
    names = {name.replace(" ", "") for name in colours()}
    css = {name: ImageColor.getrgb(name) for name in ImageColor.colormap}
    for name, rgb in colours().items():
        assert css[name.replace(" ", "")] == rgb, name
    # What is left out is a second name of a colour.
    left = {name for name in css if name not in names and css[name] not in colours().values()}
    assert not left


def test_prompts_are_worded_as_in_the_original():
    pattern = re.compile(r"([a-z ]+) circle with ([a-z ]+) background")
    for index in range(50):
        colour, background = pattern.fullmatch(CirclePairs(50)[index].prompt).groups()
        assert {colour, background} <= {*colours()}
    assert {"pale golden rod", "old lace", "burly wood"} <= {*colours()}


@pytest.mark.parametrize("side", [64, 128, 512])
def test_the_target_is_the_hint_filled(side):
    source = CirclePairs(20, side)
    for index in range(8):
        pair, circle = source[index], source.circle(index)
        target, hint, disc = pair.read_target(), pair.read_hint(), circle.disc()
        assert target.shape == hint.shape == (side, side, 3)
        inside, outside = colours()[circle.colour], colours()[circle.background]
        assert np.linalg.norm(np.subtract(inside, outside)) >= DISTANCE
        edge = hint.any(axis=-1)
        assert (target[disc & ~edge] == inside).all()
        assert (target[~disc & ~edge] == outside).all()
        assert hint.max() > 200  # less than 255 where it runs between pixels
        assert hint[0, 0].tolist() == [0, 0, 0]
        # The outline runs where the disc ends.
        rows, columns = np.nonzero(edge)
        away = np.hypot(columns - circle.x, rows - circle.y) - circle.radius
        assert np.abs(away).max() < 2 + side / 256


def test_circles_lie_inside_the_picture_and_differ():
    source = CirclePairs(500, 128)
    circles = [source.circle(index) for index in range(500)]
    for circle in circles:
        reach = circle.radius + 0.5
        assert reach < circle.x + 1
        assert circle.x + reach < 129
        assert circle.y + reach < 129
    assert len({circle.prompt for circle in circles}) > 480
    assert len({(circle.x, circle.y) for circle in circles}) == 500


def test_a_pair_is_set_by_seed_side_and_number_alone():
    few, many = CirclePairs(5, 64, seed=1), CirclePairs(50, 64, seed=1)
    assert np.array_equal(few[3].read_target(), many[3].read_target())
    assert few[3].target.stamp() == many[3].target.stamp()
    assert few.stamp() != many.stamp()
    other = CirclePairs(5, 64, seed=2)
    assert not np.array_equal(few[3].read_target(), other[3].read_target())
    assert few[3].target.stamp() != other[3].target.stamp() != few[3].hint.stamp()


def test_on_disk_they_are_the_same(tmp_path):
    told = []
    write_circles(tmp_path, 4, side=64, seed=1, progress=lambda *done: told.append(done))
    stored, drawn = open_source(tmp_path), CirclePairs(4, 64, seed=1)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(stored) == 4
    for index in range(4):
        assert stored[index].prompt == drawn[index].prompt
        assert np.array_equal(stored[index].read_target(), drawn[index].read_target())
        assert np.array_equal(stored[index].read_hint(), drawn[index].read_hint())


def test_a_stopped_run_goes_on_and_another_seed_is_refused(tmp_path):
    write_circles(tmp_path, 2, side=64, seed=1)
    told = []
    write_circles(tmp_path, 4, side=64, seed=1, progress=lambda *done: told.append(done))
    assert told == [(3, 4), (4, 4)]
    with pytest.raises(CldmError, match="choose another folder"):
        write_circles(tmp_path, 4, side=64, seed=2)


@pytest.mark.parametrize("wrong", [(0, 64), (3, 24), (3, 65)])
def test_impossible_sets_are_refused(wrong):
    with pytest.raises(CldmError, match="circles of"):
        CirclePairs(*wrong)


def test_there_is_no_pair_beyond_the_last():
    with pytest.raises(IndexError):
        CirclePairs(3, 64)[3]
