"""The Control Inspector's pictures."""

import math
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from controlnet_pack.cldm_core import CldmError, Residuals
from controlnet_pack.cldm_core.record import ControlRecord
from controlnet_pack.cldm_core.sheets import heat_sheet, strength_plot
from controlnet_pack.cldm_core.sheets_canvas import (
    Box,
    Canvas,
    colours,
    evenly,
    fitted,
    number,
    printable,
    text_width,
    ticks,
)
from controlnet_pack.cldm_core.sheets_heat import Layout, Rows, Scale
from controlnet_pack.cldm_core.sheets_plot import PALETTE, marked_steps

STEP = {"name": "canny", "net": "ControlNet for SD 1.5", "sigma": 1.0}
HATCH = (0x30, 0x30, 0x30)


def noted(
    record: ControlRecord, step: int, sizes: list[float], strength: float = 1.0, **names: str
) -> None:
    """A step in which block i adds the constant sizes[i]; the last is the middle."""
    *outputs, middle = (torch.full((1, 2, 8, 8), size) for size in sizes)
    residuals = Residuals(tuple(outputs), (middle,))
    record.note(**{**STEP, **names}, step=step, strength=strength, residuals=residuals)


def sample(blocks: int = 13, steps: int = 20, off: Callable[[int], bool] = bool) -> ControlRecord:
    record = ControlRecord()
    for step in range(steps):
        if off(step):
            record.skip(**STEP, step=step, reason="outside of the window")
        else:
            noted(record, step, [0.01 * 1.5**block for block in range(blocks)])
    return record


def never(step: int) -> bool:
    return False


def middle_of(sheet: np.ndarray, box: Box) -> np.ndarray:
    return sheet[round(box.top + box.height / 2), round(box.left + box.width / 2)].astype(int)


def layout_of(record: ControlRecord, columns: int) -> Layout:
    return Layout.of(record.nets[0].labels, columns, 1.0)


def test_an_empty_record_says_what_to_connect() -> None:
    for draw in (heat_sheet, strength_plot):
        with pytest.raises(CldmError, match="Nothing was recorded: connect the latent"):
            draw(ControlRecord())


def test_a_net_that_was_not_recorded_is_refused() -> None:
    with pytest.raises(CldmError, match="Net 1 was asked for, and 1 were recorded"):
        heat_sheet(sample(3, 2, never), net=1)


@pytest.mark.parametrize("blocks", [1, 5, 10, 13, 58])
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_a_sheet_has_the_size_of_its_layout(blocks: int, steps: int) -> None:
    record = sample(blocks, steps, never)
    layout = layout_of(record, min(steps, 10))
    assert heat_sheet(record).shape == (layout.height, layout.width, 3)


def test_sheets_are_pictures() -> None:
    record = sample(3, 3, never)
    assert heat_sheet(record).dtype == strength_plot(record).dtype == np.uint8


def test_sheets_are_dark() -> None:
    record = sample(3, 3, never)
    for sheet in (heat_sheet(record), strength_plot(record)):
        assert sheet[0, 0].tolist() == [0x1E, 0x1E, 0x1E]


def test_a_cell_has_the_colour_of_its_number() -> None:
    record = ControlRecord()
    noted(record, 0, [1.0, 10.0, 100.0])
    sheet, layout = heat_sheet(record), layout_of(record, 1)
    found = [middle_of(sheet, layout.place(row, 0)).tolist() for row in range(3)]
    assert found == colours(np.array([0.0, 0.5, 1.0])).tolist()


def test_a_hotter_step_gives_a_brighter_cell() -> None:
    record = ControlRecord()
    noted(record, 0, [1.0, 1.0])
    noted(record, 1, [1.0, 2.0])
    sheet, layout = heat_sheet(record), layout_of(record, 2)
    cool, hot = (middle_of(sheet, layout.place(1, column)) for column in range(2))
    assert hot.sum() > cool.sum()
    same = [middle_of(sheet, layout.place(0, column)).tolist() for column in range(2)]
    assert same[0] == same[1]


def test_a_hotter_place_is_brighter_within_its_cell() -> None:
    item = torch.ones(1, 2, 8, 8)
    item[..., 4:] = 5.0
    record = ControlRecord()
    record.note(**STEP, step=0, strength=1.0, residuals=Residuals((item,)))
    sheet, cell = heat_sheet(record), Layout.of(("z0",), 1, 1.0).place(0, 0)
    row = round(cell.top + cell.height / 2)
    left, right = sheet[row, round(cell.left) + 10], sheet[row, round(cell.right) - 10]
    assert right.astype(int).sum() > left.astype(int).sum()


def test_the_longest_bar_is_that_of_the_largest_block() -> None:
    record = ControlRecord()
    noted(record, 0, [1.0, 2.0])
    sheet, layout = heat_sheet(record), layout_of(record, 1)
    lit = [(row_of(sheet, layout.bar(row)[0]).max(axis=1) > 0x60).mean() for row in range(2)]
    assert lit[0] == pytest.approx(0.5, abs=0.02)
    assert lit[1] == pytest.approx(1.0, abs=0.02)


def row_of(sheet: np.ndarray, box: Box) -> np.ndarray:
    return sheet[round(box.top + box.height / 2), round(box.left) : round(box.right)]


def test_steps_that_were_off_are_hatched() -> None:
    record = sample(13, 4, lambda step: step == 3)
    sheet, layout = heat_sheet(record), layout_of(record, 4)
    cell = layout.place(2, 3)
    pixels = sheet[
        round(cell.top) + 4 : round(cell.bottom) - 4, round(cell.left) + 4 : round(cell.right) - 4
    ]
    assert pixels.max() <= HATCH[0]
    assert len(np.unique(pixels)) > 1


def test_a_picture_is_shown_on_the_sheet() -> None:
    record = sample(3, 3, never)
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 0] = 255
    sheet = heat_sheet(record, picture=red)
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() > 88 * 88


def test_a_net_without_residuals_shows_its_strength() -> None:
    record = ControlRecord()
    for step, strength in enumerate((0.2, 0.8)):
        record.note(**STEP, step=step, strength=strength, residuals=Residuals())
    sheet, layout = heat_sheet(record), Layout.of(("strength",), 2, 1.0)
    weak, strong = (middle_of(sheet, layout.place(0, column)).sum() for column in range(2))
    assert strong > weak


def test_values_that_are_no_numbers_do_not_hide_the_rest() -> None:
    record = ControlRecord()
    noted(record, 0, [1.0, math.nan, 10.0])
    sheet, layout = heat_sheet(record), layout_of(record, 1)
    found = [middle_of(sheet, layout.place(row, 0)).tolist() for row in (0, 2)]
    assert found == colours(np.array([0.0, 1.0])).tolist()
    assert strength_plot(record).std() > 0


def test_a_net_that_was_off_throughout_shows_no_colours() -> None:
    record = sample(13, 20, lambda step: True)
    assert np.ptp(heat_sheet(record).astype(int), axis=-1).max() < 4
    panels = strength_plot(record)[110:690]
    assert np.ptp(panels.astype(int), axis=-1).max() < 4


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Box]]:
    """The boxes of all texts and cells, in pixels, that are drawn while a test runs."""
    found: dict[str, list[Box]] = {"text": [], "cell": []}
    text, picture, hatch = Canvas.text, Canvas.picture, Canvas.hatch

    def spied(self: Any, box: Box, words: str, size: float, *rest: Any, **options: Any) -> None:
        align = rest[1] if len(rest) > 1 else options.get("align", "left")
        width = text_width(fitted(words, box.width, size), size)
        share = {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        left, top = box.left + share * (box.width - width), box.top + (box.height - size) / 2
        if not words.startswith("off") or size != 14:  # "off" stands in the field itself
            found["text"].append(Box(left, top, width, size))
        text(self, box, words, size, *rest, **options)

    def spy(original: Any) -> Any:
        def draw(self: Any, box: Box, *rest: Any, **options: Any) -> None:
            found["cell"].append(box)
            original(self, box, *rest, **options)

        return draw

    monkeypatch.setattr(Canvas, "text", spied)
    monkeypatch.setattr(Canvas, "picture", spy(picture))
    monkeypatch.setattr(Canvas, "hatch", spy(hatch))
    return found


def assert_apart(drawn: dict[str, list[Box]], size: tuple[int, ...]) -> None:
    everything = drawn["text"] + drawn["cell"]
    assert len(drawn["text"]) > 5
    for box in everything:
        assert box.left >= 0 <= box.top
        assert box.right <= size[1]
        assert box.bottom <= size[0]
    for first, second in combinations(everything, 2):
        beside = first.right <= second.left or second.right <= first.left
        assert beside or first.bottom <= second.top or second.bottom <= first.top, (first, second)


@pytest.mark.parametrize("blocks", [1, 5, 10, 13, 58])
@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_texts_and_cells_of_a_sheet_are_apart(
    drawn: dict[str, list[Box]], blocks: int, steps: int
) -> None:
    record = sample(blocks, steps, lambda step: step >= max(1, 0.7 * steps))
    picture = np.zeros((30, 40, 3), np.uint8)
    assert_apart(drawn, heat_sheet(record, picture=picture).shape)


@pytest.mark.parametrize("nets", [1, 3, 9])
@pytest.mark.parametrize("steps", [1, 4, 20, 50, 1000])
def test_texts_of_a_plot_are_apart(drawn: dict[str, list[Box]], nets: int, steps: int) -> None:
    record = ControlRecord()
    for index in range(nets):
        for step in range(steps):
            name = f"a rather long name of a net, number {index}"
            sigma = 14.6 * (1 - step / steps) ** 3 + 0.0293
            record.skip(name=name, net="ControlNet", step=step, sigma=sigma, reason="off")
    noted(record, 0, [1.0, 2.0], name="a rather long name of a net, number 0")
    assert_apart(drawn, strength_plot(record).shape)


def test_a_plot_has_a_line_for_each_net() -> None:
    record = ControlRecord()
    for step in range(5):
        noted(record, step, [1.0, 2.0], 1.0)
        noted(record, step, [3.0, 4.0], 0.5, name="depth")
    plot = strength_plot(record)
    for colour in PALETTE[:2]:
        assert (plot == rgb(colour)).all(axis=-1).sum() > 1000
    assert not (plot == rgb(PALETTE[2])).all(axis=-1).any()


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_a_line_under_another_is_still_seen() -> None:
    record = ControlRecord()
    for name in ("canny", "depth"):
        for step in range(5):
            noted(record, step, [1.0, 2.0], 0.9, name=name)
    plot = strength_plot(record)
    columns = (plot == rgb(PALETTE[0])).all(axis=-1)[120:420].any(axis=0)
    assert columns[200:900].mean() > 0.95  # dots have dark rims


def test_a_line_ends_where_the_net_is_off() -> None:
    record = sample(3, 20, lambda step: 5 <= step < 15)
    plot = strength_plot(record)
    lit = (plot == rgb(PALETTE[0])).all(axis=-1)[:430].any(axis=0)
    left, width = 94, 954
    x = [round(left + width * (step + 0.5) / 20) for step in range(20)]
    assert lit[x[1]]
    assert lit[x[18]]
    assert not lit[x[5] : x[14]].any()


def test_a_stronger_step_is_higher() -> None:
    record = ControlRecord()
    for step, strength in enumerate((0.2, 0.4, 0.9)):
        noted(record, step, [1.0, 1.0], strength)
    lit = (strength_plot(record) == rgb(PALETTE[0])).all(axis=-1)[120:430]
    x = [round(94 + 954 * (step + 0.5) / 3) for step in range(3)]
    tops = [int(np.argmax(lit[:, column - 1 : column + 2].any(axis=1))) for column in x]
    assert tops == sorted(tops, reverse=True)
    assert len(set(tops)) == 3


def test_negative_strengths_are_shown() -> None:
    record = ControlRecord()
    for step, strength in enumerate((-0.5, 0.5)):
        noted(record, step, [1.0, 1.0], strength)
    lit = (strength_plot(record) == rgb(PALETTE[0])).all(axis=-1)[120:423]
    assert lit[:150].any()
    assert lit[200:].any()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (14.6146, "14.6"),
        (0.5, "0.5"),
        (0.0292, "0.029"),
        (9.996, "10"),
        (0.00012, "1.2e-4"),
        (24_000, "24000"),
        (99_999.6, "1e5"),
        (123_456, "1.2e5"),
        (-0.25, "-0.25"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 7, [0, 2, 4, 6, 8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


def test_columns_are_spread_with_both_ends() -> None:
    assert evenly(4, 10) == [0, 1, 2, 3]
    assert evenly(1, 10) == [0]
    spread = evenly(50, 10)
    assert (len(spread), spread[0], spread[-1]) == (10, 0, 49)
    assert {b - a for a, b in pairwise(spread)} <= {5, 6}


def test_steps_are_named_at_round_numbers() -> None:
    assert marked_steps(range(4)) == [0, 1, 2, 3]
    assert marked_steps(range(30)) == [0, 4, 9, 14, 19, 24, 29]
    assert len(marked_steps(range(1000))) <= 21


def test_texts_are_cut_to_their_box() -> None:
    assert fitted("short", 200, 14) == "short"
    cut = fitted("a name that is far too long for its box", 80, 14)
    assert cut.startswith("a name")
    assert cut.endswith("…")
    assert text_width(cut, 14) <= 80
    assert fitted("name", 1, 14) == ""


def test_letters_that_the_font_lacks_are_question_marks() -> None:
    assert printable("Kante 边缘 · z0") == "Kante ?? · z0"


def test_numbers_close_together_get_a_linear_scale_from_zero() -> None:
    scale = Scale.of(np.array([1.0, 2.0, 4.0]))
    assert (scale.log, scale.low, scale.high) == (False, 0.0, 4.0)
    assert scale.at(np.array([0.0, 2.0, 4.0])).tolist() == [0.0, 0.5, 1.0]


def test_numbers_far_apart_get_a_logarithmic_scale() -> None:
    scale = Scale.of(np.array([0.1, 1.0, 10.0]))
    assert scale.log
    ends = scale.at(np.array([scale.low, math.sqrt(scale.low * 10), 10.0]))
    np.testing.assert_allclose(ends, [0.0, 0.5, 1.0], atol=1e-6)


def test_a_logarithmic_scale_spans_at_most_a_thousand() -> None:
    scale = Scale.of(np.geomspace(1e-9, 1.0, 100))
    assert scale.low == pytest.approx(1e-3)
    assert scale.at(np.array([0.0])).tolist() == [0.0]


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan]])
def test_nothing_to_show_is_a_scale_from_zero_to_one(values: list[float]) -> None:
    assert Scale.of(np.array(values)) == Scale(0.0, 1.0, False)


def test_the_aspect_of_cells_is_that_of_the_picture() -> None:
    record = ControlRecord()
    item = torch.ones(1, 1, 32, 64)
    record.note(
        **STEP, step=0, strength=1.0, residuals=Residuals((item,), (item.mean((2, 3), True),))
    )
    assert Rows.of(record.nets[0]).aspect == 2.0


def test_the_middle_stands_apart_from_the_encoder() -> None:
    layout = Layout.of(("z0", "z1", "middle"), 1, 1.0)
    first, second, middle = (layout.place(row, 0) for row in range(3))
    assert middle.top - second.bottom > second.top - first.bottom
    assert middle.bottom == layout.grid.bottom
