"""Applied control beside other nodes, in the real hosts; how the cases run stands in test_apply."""

import pytest

ROUNDING = 1e-3


# --- caches that skip steps ---


@pytest.mark.parametrize("how", ["one", "chain", "door"])
def test_a_net_isn_t_computed_at_steps_that_easycache_skips(applied, how: str) -> None:
    answer = applied("others", "caches")[f"EasyCacheNode {how}"]
    assert answer["apart"] == 0
    assert 0 < answer["net"] < 8
    if how != "door":
        assert answer["told"] == answer["net"]
        assert answer["eager"] == 8, "without waiting for the UNet"


@pytest.mark.parametrize("how", ["one", "chain", "door"])
def test_a_net_isn_t_computed_at_steps_that_lazycache_skips(applied, how: str) -> None:
    answer = applied("others", "caches")[f"LazyCacheNode {how}"]
    assert answer["apart"] == 0
    assert 0 < answer["net"] < 8


def test_a_cache_that_was_stopped_leaves_nothing(applied) -> None:
    assert applied("others", "errors") == {"again": 0, "encoded": 0}


@pytest.mark.parametrize("how", ["behind, early", "behind, late", "two on the model", "both doors"])
def test_easycache_goes_with_every_chain(applied, how: str) -> None:
    answer = applied("others", "several_caches")[how]
    assert answer["apart"] == 0
    assert answer["net"] > 0
    if "behind" not in how:  # the host's net looks into what is before it
        assert answer["eager"] == 16
        assert answer["net"] < 16


# --- Deep Shrink, merged tokens ---


@pytest.mark.parametrize("kind", ["demo", "sd", "t2i", "t2i xl"])
def test_deep_shrink_keeps_the_control(applied, kind: str) -> None:
    answer = applied("others", f"shrink {kind}")
    assert len(answer) == 10, "blocks 1 to 4 and the last, before and after the skip"
    for block, found in answer.items():
        assert found["dropped"] == 0, block
        assert found["effect"] > 0.1, block
        assert found.get("door", 0) == 0, block
        assert found["finite"], block


def test_a_lllite_reads_tokens_before_others_merge_them(applied) -> None:
    answer = applied("others", "merged_tokens")
    assert answer["finite"]
    assert answer["effect"] > 0.01
    assert answer["door"] == 0
    assert answer["chain"] <= ROUNDING


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
def test_deep_shrink_keeps_a_lllite(applied, factor: float, block: int) -> None:
    answer = applied("others", "shrunk_lllite")[f"{block} {factor}"]
    assert answer["effect"] > 0.01
    assert answer["finite"]


def test_deep_shrink_keeps_chains_of_all_origins(applied) -> None:
    answer = applied("others", "shrink_chains")
    assert answer["before"] == answer["after"] == [0]
    assert answer["order"] <= ROUNDING
    assert answer["doors"] <= ROUNDING
    assert answer["lines"] == []


def test_what_can_t_be_followed_is_refused(applied) -> None:
    refused = applied("others", "shrink_chains")["refused"]
    assert refused.startswith("ShapeError: A residual of shape (2, 64, 16, 16) meets a block of")
    assert "Leave that node out" in refused


# --- the host's nets, patches, other packs ---


def test_the_order_of_nets_doesn_t_matter(applied) -> None:
    answer = applied("others", "chains")
    assert answer["orders"] == 5
    assert answer["apart"] <= ROUNDING
    assert answer["effect"] > 1


def test_patches_of_attentions_work_beside_a_control(applied) -> None:
    answer = applied("others", "patches")
    assert answer["door"] == 0
    assert answer["host"] <= ROUNDING
    assert answer["effect"] > 0.01
    assert answer["called"]
    assert answer["left"] == ["attn2_patch"]


def test_rows_that_a_pack_changes_are_computed_each(applied) -> None:
    answer = applied("others", "changed_rows")
    assert answer["changed"] <= ROUNDING
    changed, shared, as_host = answer["given"]
    assert changed == [2, 2], "pictures and texts"
    assert shared == [1, 2]
    assert as_host == [2, 2], "for the host's pictures bit for bit"


def test_a_lllite_that_is_asked_twice_patches_once(applied) -> None:
    answer = applied("others", "asked_twice")
    assert answer["apart"] == 0
    assert answer["effect"] > 1


def test_lists_of_unlike_length_are_summed_as_the_model_reads_them(applied) -> None:
    assert applied("others", "unlike") == {"pictures": [2, 5], "tokens": [3, 4]}


@pytest.mark.parametrize("setting", ["mask", "schedule", "weights", "frames", "negative side"])
def test_a_net_of_the_host_s_loader_takes_the_settings(applied, setting: str) -> None:
    assert applied("others", "foreign")[setting] <= ROUNDING


def test_a_net_of_the_host_s_loader_says_what_it_can_t(applied) -> None:
    answer = applied("others", "foreign")
    assert "nobody defines soft weights" in answer["refused"]
    assert "rows: 3 with control, 3 left out\n" in answer["text"], "they are computed"


def test_a_model_that_is_called_row_by_row_is_controlled(applied) -> None:
    assert applied("others", "divided")["apart"] <= ROUNDING


def test_a_host_whose_attentions_have_other_names_samples(applied) -> None:
    assert applied("others", "without_a_name") == {"apart": 0}


# --- a net for transformers ---


def test_nets_that_soften_their_strength_do_so_by_our_node_too(applied) -> None:
    answer = applied("tokens", "softened")
    whole = [0.5 * number for number in range(1, 7)]
    assert answer["host"] == answer["ours"] == answer["reuse"] == whole
    assert answer["schedule"] == [half / 2 for half in whole]


def test_blocks_of_transformers_are_counted_from_their_start(applied) -> None:
    answer = applied("tokens", "weights")
    assert answer["plain"] == [1, 2, 3, 4, 5, 6]
    assert answer["0-1: 0.5, 5: 0"] == [0.5, 1, 3, 4, 5, 0]
    assert answer["early"] == [1, 2, 3, 0, 0, 0]
    assert answer["0-1: 0.5, 5: 0, chain"] == [1.5, 3, 6, 8, 10, 6]
    assert answer["early, chain"] == [2, 4, 6, 4, 5, 6]


def test_a_net_for_transformers_without_weight_is_computed_once(applied) -> None:
    assert applied("tokens", "weights")["calls without weight"] == 1


def test_a_mask_lies_over_the_tokens(applied) -> None:
    assert applied("tokens", "mask")["columns"] == [1, 1, 1, 1, 0, 0, 0, 0]


def test_tokens_are_used_again_as_long_as_the_hint_is_the_same(applied) -> None:
    assert applied("tokens", "reuse") == {"calls": 2, "changed": 3}


@pytest.mark.parametrize("window", ["all", "late", "early"])
def test_easycache_goes_with_a_transformer_s_net(applied, window: str) -> None:
    answer = applied("tokens", "caches")[window]
    assert answer["apart"] == 0
    assert answer["effect"] > 0
    assert 0 < answer["calls"] <= answer["eager"]


def test_advanced_controlnet_works_with_our_nets(applied) -> None:
    answer = applied("others", "advanced")
    if "skipped" in answer:
        pytest.skip(answer["skipped"])
    assert answer["our net"] == answer["still"] == 0
    assert max(answer[way] for way in ("its net", "before", "after")) <= ROUNDING
    assert answer["effect"] > 1
