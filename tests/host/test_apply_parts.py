"""Parts of a picture in the real hosts; how the cases run stands in test_apply."""

import pytest

ROUNDING = 1e-3
TILES = 4


# --- reuse ---


def test_tiles_on_the_model_reuse_their_own_residuals(applied) -> None:
    answer = applied("parts", "rolled")["0"]
    assert answer["as computed"] == 0
    assert answer["unlike"] > 0.01
    assert answer["net"] == TILES, "at the first of two steps"


def test_tiles_whose_place_nobody_knows_reuse_nothing(applied) -> None:
    answer = applied("parts", "rolled")["4"]
    assert answer["as computed"] == 0
    assert answer["unlike"] > 0.01
    assert answer["net"] == TILES + 3, "one of four lies within the picture"


def test_tiles_with_hints_of_their_own_are_told_apart_by_them(applied) -> None:
    answer = applied("parts", "handed")
    assert answer["ours, reuse"] == [TILES, TILES]
    assert answer["ours, none"] == answer["theirs, none"] == [2 * TILES, 0]
    assert answer["ours, apart"] == 0


def test_tiles_of_a_net_of_the_host_s_loader_are_told_apart_by_their_places(applied) -> None:
    answer = applied("parts", "handed")
    assert answer["theirs, reuse"] == [TILES + 3, 1]
    assert answer["theirs, apart"] == 0


def test_every_batch_of_a_step_has_its_drift(applied) -> None:
    assert applied("parts", "drift") == {"computed": 6, "drifts": 4}


# --- what is not computed ---


@pytest.mark.parametrize(("masked", "rows"), [("areas", [1, 2]), ("pictures", [2]), ("all", [])])
def test_rows_under_a_black_mask_are_not_computed(applied, masked: str, rows: list[int]) -> None:
    answer = applied("parts", "black")[masked]
    assert answer["net"] == rows
    assert answer["reasons"] == ([] if rows else ["outside of the mask"])


def test_masks_are_looked_at_once_in_a_sampling(applied) -> None:
    answer = applied("parts", "looks")
    assert answer["looks"] == 2, "for the areas together, and for what has none"
    assert answer["net"] == [], "black since"


def test_the_record_says_why_nobody_gets_anything(applied) -> None:
    assert applied("parts", "reasons") == {
        "frames": ["no picture"],
        "frames, one side": ["no picture"],
        "mask": ["outside of the mask"],
        "side": ["no row of this side"],
    }


# --- hints and masks ---


@pytest.mark.parametrize("way", ["one by one", "together", "two pictures"])
def test_further_hints_of_a_union_are_cut_to_tiles(applied, way: str) -> None:
    answer = applied("parts", "union")
    assert answer[way] <= ROUNDING
    assert answer["encoded"] == TILES, "once in a sampling"
    assert answer["effect"] > 0.01


def test_further_hints_need_tiles_whose_place_is_known(applied) -> None:
    answer = applied("parts", "union")
    assert answer["no place"].startswith("CldmError: The picture is sampled in tiles, and which")
    assert answer["no place, one hint"] == ""


def test_sdxl_s_adapters_read_a_hint_of_the_right_size_as_it_is(applied) -> None:
    answer = applied("parts", "odd")
    assert all(answer[fit] == [[72, 104], True] for fit in ("crop", "stretch", "fill"))
    assert answer["as ComfyUI"] == [[80, 112], False]


def test_what_smooth_resizing_adds_to_masks_and_pictures_is_taken_away(applied) -> None:
    answer = applied("parts", "overshoot")
    assert answer["mask"] == answer["inpaint"] == 0
    assert answer["marked"] == -1
    assert answer["without a batch"] == 0
    assert all("expected [0, 1]" in sentence for sentence in answer["refused"])
