"""Weights of blocks as text: what it says, what it can't say, and that it comes back equal."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.block_text import PRESETS, blocks_text, parse_blocks

COUNTS = (4, 7, 10, 13)


@pytest.fixture(autouse=True, scope="module")
def _nothing_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("0.1, 0.2, 0.3, 1", (0.1, 0.2, 0.3, 1)),
        ("1;2\n-3;.5", (1, 2, -3, 0.5)),
        ("1e-3, 2E2, +1, 0,", (0.001, 200, 1, 0)),
        ("0: 0.5", (0.5, 1, 1, 1)),
        ("0-2: 0.5, middle: 2", (0.5, 0.5, 0.5, 2)),
        ("1 - 2 : 0", (1, 0, 0, 1)),
        ("3: 0", (1, 1, 1, 0)),
        ("rest: 0, 1: 0.25", (0, 0.25, 0, 0)),
        ("MIDDLE: 1, Rest: 0.5", (0.5, 0.5, 0.5, 1)),
        ("rest: 0", (0, 0, 0, 0)),
        ("only middle", (0, 0, 0, 1)),
        ("  No   Middle ", (1, 1, 1, 0)),
        ("only early blocks", (1, 1, 0, 0)),
        ("only late blocks", (0, 0, 1, 1)),
        ("all", (1, 1, 1, 1)),
        ("fade in", (0.25, 0.5, 0.75, 1)),
        ("fade out", (1, 0.75, 0.5, 0.25)),
    ],
)
def test_the_weights_of_a_text(text: str, weights: tuple[float, ...]) -> None:
    assert parse_blocks(text, 4) == weights


@pytest.mark.parametrize("count", COUNTS)
def test_early_and_late_blocks_are_all_together(count: int) -> None:
    early, late = (PRESETS[f"only {name} blocks"](count) for name in ("early", "late"))
    assert [a + b for a, b in zip(early, late, strict=True)] == [1] * count
    assert (early[0], early[-1]) == (1, 0)
    assert sum(early) == count // 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_a_weight_for_each_block(name: str, count: int) -> None:
    weights = parse_blocks(name, count)
    assert len(weights) == count
    assert all(0 <= weight <= 1 for weight in weights)
    assert parse_blocks(blocks_text(weights), count) == weights


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "The text is empty: write 4 numbers with commas"),
        ("1, 1, 1", "3 weights were given: write 4 numbers"),
        ("1, 1, 1, 1, 1", "5 weights were given"),
        ("1, 1, 1, x", "'x' is no weight of a block"),
        ("1, 0: 1", "'1' is no weight of a block"),
        ("only the middle", "'only the middle' is no weight .* one of all, only middle, no middle"),
        ("0: nan", "'0: nan' is no weight of a block"),
        ("nan, 1, 1, 1", "'nan' is no weight of a block"),
        ("0: 1e999", "A block's weight is inf, expected a finite number"),
        ("1e999, 1, 1, 1", "A block's weight is inf, expected a finite number"),
        ("4: 1", "'4: 1' names blocks outside 0 to 3, or backwards"),
        ("2-1: 1", "'2-1: 1' names blocks outside"),
        ("0-1: 1, 1: 0", "'1: 0' sets what another part has set"),
        ("middle: 1, 3: 0", "'3: 0' sets what another part has set"),
        ("rest: 1, rest: 0", "'rest: 0' sets what another part has set"),
        ("-1: 0", "'-1: 0' is no weight of a block"),
        ("99999: 0", "'99999: 0' is no weight of a block"),
    ],
)
def test_a_text_that_makes_no_sense_is_told(text: str, sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        parse_blocks(text, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_have_no_text(value: float) -> None:
    with pytest.raises(CldmError, match=f"A block's weight is {value}, expected a finite number"):
        blocks_text((1.0, value))


def test_the_text_is_short() -> None:
    assert blocks_text((1, 0.5, -0.25, 0.0, 0.825**12)) == "1, 0.5, -0.25, 0, 0.09941396206337118"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@settings(deadline=None)
def test_every_weight_comes_back_to_the_last_bit(weights: list[float]) -> None:
    back = parse_blocks(blocks_text(weights), len(weights))
    assert [value.hex() for value in back] == [float(value).hex() for value in weights]


@given(
    st.dictionaries(st.integers(0, 12), st.integers(-20, 20), min_size=1),
    st.integers(-20, 20),
    st.randoms(),
)
@settings(deadline=None)
def test_parts_mean_the_same_in_any_order(
    blocks: dict[int, int], rest: int, shuffle: random.Random
) -> None:
    parts = [f"rest: {rest}", *(f"{block}: {weight}" for block, weight in blocks.items())]
    shuffle.shuffle(parts)
    expected = tuple(float(blocks.get(block, rest)) for block in range(13))
    assert parse_blocks(", ".join(parts), 13) == expected
