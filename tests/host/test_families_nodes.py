"""The nodes in the real hosts: several hints, refusals in sentences, settings, what they show."""

import pytest

from ..cldm_core.samples import OTHERS

BY_THE_HOST = (
    *("cascade", "flux", "flux_mistoline", "flux_xlabs", "hunyuan_dit", "qwen", "qwen_fun"),
    *("sd3", "sd35"),
)


def test_several_hints_are_the_core_s_own_result(case) -> None:
    answer = case("rest", "union")
    assert answer["core"] == 0
    assert answer["doors"] == 0
    assert answer["without a hint"] > 0.1
    assert answer["another scale"] > 0.1
    assert answer["size"] == [2, 64, 8, 8]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("no type", "must be told what its hint is: put Set Control Type (CLDM)"),
        ("no type, model door", "must be told what its hint is: put Set Control Type (CLDM)"),
        ("no type, host's apply", "must be told what its hint is: put Set Control Type (CLDM)"),
        ("wrong type", "The control type 'fog' is unknown to this net: give one of its 8"),
        ("twice", "There is a hint of the type tile already"),
        ("as Apply's", "have the same control type: each type takes one hint"),
        ("no union", "This control net knows no control types"),
    ],
)
def test_wrong_types_are_refused(case, act: str, words: str) -> None:
    assert words in case("rest", "union")[act]


def test_nets_of_the_host_s_loader_go_through_our_apply(case) -> None:
    answer = case("rest", "handed")
    assert answer["same"]
    assert answer["notes"] == ["This is a Flux ControlNet: it was loaded by ComfyUI's own loader."]
    assert answer["apart"] == 0
    assert answer["effect"] > 0.01
    assert "only Apply ControlNet takes such nets" in answer["door"]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused_with_a_sentence(case, kind: str) -> None:
    told = case("rest", "refused")[kind]
    # None of them is whole, so the host's loader fails as well, in a way of its own.
    expected = "this version of ComfyUI can't load it" if kind in BY_THE_HOST else ": "
    assert told.startswith(f"UnsupportedCheckpoint: {kind}.safetensors ")
    assert ("seems to hold" in told) == (kind in BY_THE_HOST)
    assert expected in told


def test_files_of_no_kind_are_refused_with_a_sentence(case) -> None:
    told = case("rest", "refused")
    assert "holds no control net that is known by its keys" in told["unknown"]
    assert "There is no file" in told["none"]


@pytest.mark.parametrize(
    "family",
    [
        *("cldm", "vector", "union", "t2i", "t2i xl", "control_lora", "difference", "lllite"),
        "text",
    ],
)
def test_a_base_of_another_family_is_refused_before_sampling(case, family: str) -> None:
    answer = case("rest", "mismatch")[family]
    assert answer["steps"] == 0
    for door in ("prompts", "door", "no UNet"):
        assert answer[door].startswith("FamilyMismatch: This "), door
        assert "None" not in answer[door]
        assert "family" in answer[door]


def test_loading_and_sampling_again_leaves_nothing_behind(case) -> None:
    answer = case("rest", "leaks")
    assert answer["first"] == answer["second"]
    assert answer["second"][1:] == [0, 0], "controls and callbacks"


def test_pooling_and_heads_follow_the_node(case) -> None:
    answer = case("rest", "settings")
    assert answer["auto"][0] == answer["off"][0] == "Pooling: off."
    assert answer["on"][0].startswith("Pooling: on, as set in the node;")
    assert "Pooling: on, as its name says;" in answer["shuffle"]
    assert answer["pooled"] == [False, True, False]
    assert answer["pooled lora"] == [True, False]
    assert answer["pooled adapter"][0].startswith("Pooling: ")
    assert answer["heads"] > 1e-3
    assert answer["head_channels"] == 32
    assert "can be set for plain ControlNets only" in answer["heads of others"]
    assert "64 wide, which is no multiple of 48" in answer["wrong heads"]


def test_inspect_tells_what_a_file_holds(case) -> None:
    lines = case("rest", "settings")["inspect"].splitlines()
    for fact in ("kind: ControlNet", "base: embedded model", "keys: cldm", "hint: 3 channels"):
        assert fact in lines
