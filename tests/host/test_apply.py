"""Applied control in the real hosts: sides, modes, timing, frames, areas, neighbours, ends.

The cases run inside a host, all in one process (tests/host/inside/apply*.py, started by the fixture
`apply_cases`); here is what they must find: `applied(group, name)` is the answer of one.
With ADVANCED_CONTROLNET, the folder of Kosinkadink/ComfyUI-Advanced-ControlNet, that pack is tried
as well; a folder of that name beside the host's is found by itself.
"""

import pytest

ROUNDING = 1e-3
"""Beside latents of up to 30: batches of other sizes are summed in another order."""
STEPS = 3


# --- sides ---


def test_the_negative_side_is_left_out_and_not_computed(applied) -> None:
    answer = applied("sides", "both_sides")
    assert answer["net"] == [1] * STEPS
    assert answer["unet"] == [2] * STEPS, "both sides stay in one batch"
    assert answer["as on the positive side alone"] <= ROUNDING
    assert answer["effect"] > 1


def test_rows_that_are_left_out_are_as_if_computed_and_zeroed(applied) -> None:
    answer = applied("sides", "both_sides")
    assert answer["computed"] == [2] * STEPS
    assert answer["as computed and zeroed"] <= ROUNDING


def test_rows_of_unknown_side_get_the_control_in_full(applied) -> None:
    assert applied("sides", "dual")["unknown"] == {"net": [2] * STEPS, "unet": [3] * STEPS}


def test_marks_win_over_the_names_of_a_guider(applied) -> None:
    answer = applied("sides", "dual")
    assert answer["marks win"]["net"] == [3] * STEPS
    assert answer["negative everywhere"]["net"] == []


def test_perp_neg_has_the_control_on_its_positive_side(applied) -> None:
    answer = applied("sides", "perp_neg")
    assert answer["net"] == [1] * STEPS
    assert sum(answer["unet"]) == 3 * STEPS


def test_a_side_asked_for_alone_is_known(applied) -> None:
    answer = applied("sides", "alone")
    assert answer["sag"] == {"net": [1] * STEPS, "unet": [2, 1] * STEPS}, "the negative one"
    assert answer["pag"] == {"net": [1, 1] * STEPS, "unet": [2, 1] * STEPS}, "the positive one"
    assert answer["no guidance"] == {"net": [1] * STEPS, "unet": [1] * STEPS}


def test_pooled_nets_behind_the_host_s_node_act_on_the_positive_side(applied) -> None:
    assert applied("sides", "without_apply") == {"net": [1] * STEPS, "unet": [2] * STEPS}


def test_our_hooks_are_added_once_and_on_no_conditioning(applied) -> None:
    assert applied("sides", "hooks") == {
        "on conditionings": False,
        "looked": 2 * STEPS,
        "wrappers": 1,
        "named": 0,
        "has hooks": False,
    }


def test_a_host_with_dynamic_memory_loads_the_base_once(applied) -> None:
    assert applied("sides", "dynamic") == {"loaded again": 0}


def test_hooks_on_weights_work_beside_ours(applied) -> None:
    answer = applied("sides", "other_hooks")
    assert answer["as a patch"] <= ROUNDING
    assert answer["by the door"] == 0
    assert answer["effect"] > 0.1
    assert min(answer["scheduled"]) > 0.01, "neither off nor on throughout"
    assert answer["one side"] == [1] * 2 * STEPS
    assert answer["again"] == 0


# --- modes ---


@pytest.mark.parametrize("family", ["sd15", "sdxl", "t2i", "t2i_xl"])
def test_modes_multiply_the_residuals_with_the_core_s_numbers(applied, family: str) -> None:
    answer = applied("modes", f"weights {family}")
    assert answer.pop("count") == {"sd15": 13, "sdxl": 10}.get(family, 4)
    assert answer.pop("size") > 1
    refused = {name: found for name, found in answer.items() if isinstance(found, str)}
    assert all(found <= ROUNDING for name, found in answer.items() if name not in refused)
    assert sorted(refused) == (
        ["control, original", "prompt, original"] if family == "sdxl" else []
    )
    assert all("a1111, diffusers" in sentence for sentence in refused.values())


@pytest.mark.parametrize(
    ("kind", "count"),
    [("union", 10), ("Control-LoRA", 13), ("difference", 7), ("light adapter", 4), ("SD 2.1", 13)],
)
def test_modes_are_the_core_s_for_nets_of_every_kind(applied, kind: str, count: int) -> None:
    answer = applied("modes", "kinds")[kind]
    assert answer["count"] == count
    assert answer["size"] > 0.1
    assert max(answer["prompt"]["apart"] + answer["control"]["apart"]) <= ROUNDING
    assert answer["prompt"]["rows"] == [2]
    assert answer["control"]["rows"] == [1], "the negative prompt's row isn't computed"


def test_modes_are_refused_for_nets_without_residuals(applied) -> None:
    refused = applied("modes", "kinds")["ControlNet-LLLite"]
    assert len(refused) == 2
    assert all("a ControlNet-LLLite has none: choose balanced" in one for one in refused)


def test_a_mode_is_a_net_with_weaker_zero_convolutions(applied) -> None:
    answer = applied("modes", "scaled")
    assert answer["by hand"] <= ROUNDING
    assert answer["effect"] > 1


def test_blocks_are_weighed_by_text_and_presets(applied) -> None:
    answer = applied("modes", "blocks")
    assert answer["text"] == [0.5] * 3 + [1.0] * 9 + [2.0]
    assert len(answer["presets"]) >= 5
    assert max(answer["presets"]) <= 1e-4
    assert answer["wrong"].startswith("CldmError: 3 weights were given: write 13 numbers")


def test_weights_of_one_s_own_need_no_curve(applied) -> None:
    """SDXL's family has no curve `original`."""
    expected = [number / 10 for number in range(1, 11)]
    assert applied("modes", "blocks")["in place of a curve"] == pytest.approx(expected)


DOORS = ["prompt", "control", "curve", "weights", "schedule", "schedule by steps", "frames"]
DOORS += ["mask", "mask for each", "reuse", "stretch", "fill", "window", "window by steps"]
DOORS += ["hints", "strength"]


@pytest.mark.parametrize("setting", DOORS)
def test_both_doors_agree_bit_for_bit(applied, setting: str) -> None:
    apart, effect = applied("modes", "doors")[setting]
    assert apart == 0
    assert effect > 0.01


def test_settings_that_say_nothing_change_nothing(applied) -> None:
    answer = dict(applied("modes", "nothing"))
    assert answer.pop("strength 0") is True
    assert answer.pop("strength 0, model") is True
    assert len(answer) == 8
    assert set(answer.values()) == {0.0}


def test_options_may_be_chained_in_any_order(applied) -> None:
    assert applied("modes", "options") == {"order": True, "reuse": 3}


# --- time ---


def test_windows_of_timesteps_are_the_host_s(applied) -> None:
    answer = applied("time", "as_host")
    assert len(answer) == 7
    assert all(ours == theirs for ours, theirs in answer.values())
    assert len({ours for ours, _ in answer.values()}) > 2


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [("euler", [2, 1, 4]), ("heun", [4, 1, 7]), ("dpm_2", [4, 2, 7]), ("dpmpp_2m", [2, 1, 4])],
)
def test_windows_of_steps_hold_both_ends(applied, sampler: str, calls: list[int]) -> None:
    answer = applied("time", "steps")
    middle, first, whole = calls
    assert answer[f"{sampler} (0.25, 0.5)"] == [[1, 2], 4, middle]
    assert answer[f"{sampler} (0.0, 0.0)"] == [[0], 4, first]
    assert answer[f"{sampler} (1.0, 1.0)"] == [[], 4, 0], "no step has the share 1"
    assert answer[f"{sampler} (0.0, 1.0)"] == [[0, 1, 2, 3], 4, whole]
    assert answer[f"{sampler} (0.26, 0.49)"] == [[], 4, 0]


def test_steps_are_counted_from_where_denoising_begins(applied) -> None:
    assert applied("time", "steps")["half denoised"] == [1, 2]


def test_schedules_follow_their_unit(applied) -> None:
    answer = applied("time", "schedules")
    assert answer["steps"] == [1.0, 0.75, 0.5, 0.25]
    assert answer["between steps"] == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25]
    assert len(answer["timesteps"]) == 3, "the last has the strength 0 and isn't computed"
    assert max(answer["timesteps"]) <= 1e-5
    assert answer["first"] == 1


def test_what_has_no_weight_is_not_computed(applied) -> None:
    assert applied("time", "zero_in_between") == {"calls": 2, "no frame": [0, 0]}


def test_residuals_are_used_again_for_as_many_steps_as_are_set(applied) -> None:
    answer = applied("time", "reuse")
    for name, calls in {"2 euler": 3, "3 euler": 2, "8 euler": 1, "2 heun": 3}.items():
        assert answer[name]["net"] == answer[name]["told"][0] == calls
        assert answer[name]["told"][1] == (11 if "heun" in name else 6) - calls
        assert answer[name]["drifts"] == calls - 1
        assert (answer[name]["drift"] > 0.01) is (calls > 1)
    assert answer["window"] == 2


def test_steps_are_counted_where_sigmas_rise(applied) -> None:
    assert applied("time", "rising") == {"net": 3, "steps": [0, 1, 2, 3, 4]}


# --- frames ---


def test_pictures_have_factors_and_those_with_none_are_not_computed(applied) -> None:
    answer = applied("frames", "factors")
    assert answer["factors"] == [1.0, 0.0, 0.25, 0.5]
    assert answer["rows"] == [6]
    assert answer["too short"].startswith("CldmError: In a batch of 2 the keyframes are at")


@pytest.mark.parametrize(("given", "encoded"), [(1, 1), (2, 2), (3, 3), (4, 4), (6, 4)])
def test_hints_of_a_batch_begin_again_where_there_are_fewer(applied, given, encoded) -> None:
    answer = applied("frames", "hints")
    assert answer[str(given)]["apart"] <= (ROUNDING if given == 1 else 0)
    assert answer[str(given)]["encoded"] == [encoded]
    assert answer["effect"] > 0.01


def test_windows_have_the_hints_masks_and_factors_of_their_pictures(applied) -> None:
    answer = applied("frames", "windows")
    assert answer["alone"] <= ROUNDING
    assert answer["effect"] > 1
    assert answer["encoded"] == [4], "once for all windows and steps"
    assert answer["rows"] == [2, 4] * STEPS, "a picture with factor 0 isn't computed"
    assert answer["unet"] == [4, 4] * STEPS


def test_windows_of_animatediff_are_as_the_host_s(applied) -> None:
    answer = applied("frames", "animatediff")
    assert answer["alone"] <= ROUNDING
    assert answer["effect"] > 1
    assert answer["encoded"] == [4]
    assert answer["rows"] == [2, 4] * STEPS
    assert answer["chain"] == ""
    assert answer["afterwards"] is False, "Advanced-ControlNet would take it for its own"


def test_nets_of_the_host_s_loader_get_the_hints_of_their_window(applied) -> None:
    answer = applied("frames", "foreign")
    for windows in ("the host's", "an adapter", "AnimateDiff's"):
        assert answer[windows]["alone"] <= ROUNDING, windows
        assert answer[windows]["effect"] > 0.1, windows
    assert answer["given"] == [[[0, 1], [5, 7]], [[2, 0], [5, 5]]], "3 hints, and 2 masks"
    assert answer["left"] == [3, 2]


def test_windows_that_overlap_reuse_their_own_residuals(applied) -> None:
    answer = applied("frames", "overlapping")
    assert answer["windows"] == [[0, 1], [1, 2], [2, 3]]
    assert answer["encoded"] == [4]
    assert answer["computed"] == [6, 3]


def test_a_control_holds_its_encoded_hints_and_one_set_for_each_batch_of_a_step(applied) -> None:
    answer = applied("frames", "memory")
    hints, row = 4 * answer["hint"], answer["row"]
    assert answer["without reuse"] == [[hints, 0]] * STEPS
    assert answer["whole"] == [[hints, 8 * row]] * STEPS
    assert answer["overlapping"] == [[hints, 3 * 4 * row]] * STEPS, "3 windows of 2 pictures"


def test_hints_of_each_type_begin_again_by_themselves(applied) -> None:
    answer = applied("frames", "union")
    assert answer["written out"] == 0
    assert answer["one and two"] <= ROUNDING
    assert answer["effect"] > 0.1


# --- areas and tiles ---


def test_each_area_gets_its_part_of_the_hint_encoded_once(applied) -> None:
    answer = applied("areas", "crops")["balanced"]
    assert answer["encoded"] == [["left", "right"]]
    assert answer["whole"] == [True], "for the negative prompt"
    assert answer["net"] == answer["unet"] == [1] * STEPS + [4] * STEPS


def test_negative_copies_of_areas_are_known_for_negative(applied) -> None:
    answer = applied("areas", "crops")["ControlNet is more important"]
    assert answer["unet"] == [1] * STEPS + [4] * STEPS, "in the same calls as before"
    assert answer["net"] == [2] * STEPS
    assert answer["whole"] == []


def test_an_area_is_controlled_as_a_picture_of_its_size(applied) -> None:
    answer = applied("areas", "alone")
    assert answer["calls"] == 1
    assert answer["apart"] <= ROUNDING
    assert answer["effect"] > 0.01


def test_masks_are_cut_to_areas(applied) -> None:
    shares = applied("areas", "masks")["shares"]
    assert sorted(shares) == [[0.0], [0.0], [1.0], [1.0]]


@pytest.mark.parametrize(("mode", "rows"), [("balanced", 2), ("ControlNet is more important", 1)])
def test_tiles_get_the_hints_that_a_tiler_gives(applied, mode: str, rows: int) -> None:
    answer = applied("areas", "tiles")
    single, together = answer[f"{mode}, one by one"], answer[f"{mode}, together"]
    assert single == {"net": [rows, rows] * STEPS, "encoded": [[2, 3, 128, 64]] * 2}
    assert together == {"net": [2 * rows] * STEPS, "encoded": [[4, 3, 128, 64]]}
    assert answer[f"{mode}, apart"] <= ROUNDING


def test_tiles_reuse_their_own_residuals(applied) -> None:
    assert applied("areas", "tiles")["reuse"] == [0, 0, True]


def test_a_copy_with_a_part_of_the_hint_is_controlled_by_that(applied) -> None:
    answer = applied("areas", "crop_by_others")
    assert answer["apart"] == 0
    assert answer["effect"] > 0.01


# --- recordings ---


def test_nobody_reads_lent_residuals_after_the_next_call(applied) -> None:
    for name, answer in applied("lent", "latents").items():
        lends = name not in ("reuse", "record")
        assert set(answer["lent"]) == {lends}, name
        assert bool(answer["spoilt"]) is lends, name
        assert answer["apart"] == 0, name


def test_lent_residuals_that_are_read_too_late_are_seen(applied) -> None:
    assert applied("lent", "steps_apart") == {"finite": False}


def test_compiled_unets_get_no_residuals_of_another_stream(applied) -> None:
    answer = applied("lent", "streams")
    assert "a stream of its own" in answer["plain"]
    assert answer["host's node"] == answer["part"] == ""
