"""Tiles are found where they were cut from, and nowhere else."""

import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core.tiles import place_of

from .seeded import seeded_tensor


@pytest.fixture
def whole() -> Tensor:
    return seeded_tensor((4, 12, 17), "whole", 1)


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (6, 9), (0, 9), (6, 0)])
def test_a_tile_is_found_where_it_was_cut(whole: Tensor, place: tuple[int, int]) -> None:
    top, left = place
    assert place_of(whole[:, top : top + 6, left : left + 8].clone(), whole) == place


def test_the_whole_lies_at_the_origin(whole: Tensor) -> None:
    assert place_of(whole, whole) == (0, 0)


def test_a_tile_of_another_type_is_found(whole: Tensor) -> None:
    assert place_of(whole[:, 2:8, 1:9].half(), whole) == (2, 1)


@pytest.mark.parametrize("shift", [(1, 0), (0, 3)])
def test_a_tile_across_the_border_of_a_rolled_picture_lies_nowhere(
    whole: Tensor, shift: tuple[int, int]
) -> None:
    assert place_of(whole.roll(shift, dims=(1, 2))[:, :6, :8], whole) is None


def test_one_other_number_and_it_lies_nowhere(whole: Tensor) -> None:
    tile = whole[:, 2:8, 1:9].clone()
    tile[3, -1, -1] += 1e-3
    assert place_of(tile, whole) is None


def test_a_plain_picture_doesn_t_tell_places_apart() -> None:
    plain = torch.zeros(4, 12, 17)
    assert place_of(plain[:, :6, :8], plain) is None


def test_an_equal_corner_is_no_place(whole: Tensor) -> None:
    whole[:, 7, 3] = whole[:, 2, 1]
    whole[:, 0, 0] = whole[:, 2, 1]
    assert place_of(whole[:, 2:8, 1:9], whole) == (2, 1)


@pytest.mark.parametrize("shape", [(4, 13, 8), (4, 6, 18), (3, 6, 8), (4, 0, 8)])
def test_a_tile_that_can_t_be_a_part_lies_nowhere(whole: Tensor, shape: tuple[int, ...]) -> None:
    assert place_of(torch.zeros(shape), whole) is None
