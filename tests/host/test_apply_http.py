"""Applied control in running hosts, beside nodes that change how they sample, and other packs.

Every test queues prompts over HTTP and looks at pictures, at what the nodes tell, and at the log.
With ADVANCED_CONTROLNET, the folder of Kosinkadink/ComfyUI-Advanced-ControlNet, that pack is there
as well; a folder of that name beside the host's is found by itself.
"""

import copy
import json
from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest

from .bench import ADVANCED, LORA, Bench, apart, beside, numbers
from .graphs import (
    APPLY,
    PATCH,
    SAMPLER,
    applied_again,
    cached,
    guided,
    hooked,
    in_windows,
    loader,
    of_a_batch,
    on_the_model,
    put,
    shrunk,
    tiled,
    with_hint,
    with_mask,
    with_options,
)
from .hosts import HostInstall
from .prompts import (
    Prompt,
    find,
    first_picture,
    interrupted,
    node_id,
    through_the_model_door,
    without_control,
)

CONTROL = "ControlNet is more important"
STEPS = 4
MARGIN = 1
"""Of 255: in batches of another size the same sums run in another order."""
SEEN = 20
"""Of 255: what control makes of a picture."""
DOORS = {"conditioning": lambda prompt: prompt, "model": through_the_model_door}


@pytest.fixture(scope="module")
def bench(install: HostInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A host with the tests' own nodes, and Advanced-ControlNet where it is found."""
    with beside(install, tmp_path_factory.mktemp(f"beside-{install.version}")) as host:
        new = Bench(host, {})
        yield Bench(host, {door: new.run(DOORS[door](reusing())).picture for door in DOORS})


def reusing() -> Prompt:
    """Control that holds residuals from step to step."""
    return with_options(first_picture(STEPS), "CLDM_ControlSpeed", reuse=2)


# --- guiders, and nodes that ask for one side once more ---


def test_samplercustomadvanced_gives_the_picture_of_ksampler(bench: Bench) -> None:
    prompt = first_picture(STEPS)
    sides = {"positive": "positive", "negative": "negative"}
    found = bench.run(guided(prompt, "CFGGuider", **sides, cfg="cfg"))
    assert np.array_equal(found.picture, bench.run(prompt).picture)
    assert found.steps == (STEPS, STEPS)
    assert found.rows == (0, 0), "none is left out"


def test_basicguider_gives_the_controlled_prompt_alone(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    found = bench.run(guided(prompt, "BasicGuider", conditioning="positive"))
    plain = copy.deepcopy(prompt)
    find(plain, SAMPLER)["inputs"]["cfg"] = 1.0
    assert np.array_equal(found.picture, bench.run(plain).picture)
    bare = bench.run(guided(without_control(prompt), "BasicGuider", conditioning="positive"))
    assert apart(found.picture, bare.picture) > SEEN


def test_a_mark_wins_over_the_name_that_basicguider_gives(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    found = bench.run(guided(prompt, "BasicGuider", conditioning="negative"))
    assert found.steps == (0, STEPS)
    assert found.rows == (0, STEPS)
    bare = bench.run(guided(without_control(prompt), "BasicGuider", conditioning="negative"))
    assert np.array_equal(found.picture, bare.picture)


def test_dualcfgguider_with_one_prompt_twice_is_ksampler(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    sides = {"cond1": "positive", "cond2": "positive", "negative": "negative"}
    scales = {"cfg_conds": 5.0, "cfg_cond2_negative": "cfg", "style": "regular"}
    found = bench.run(guided(prompt, "DualCFGGuider", **sides, **scales))
    assert found.rows == (2 * STEPS, STEPS)
    assert apart(found.picture, bench.run(prompt).picture) <= MARGIN


def test_perpnegguider_without_its_scale_is_ksampler(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    sides = {"positive": "positive", "negative": "negative", "empty_conditioning": "negative"}
    found = bench.run(guided(prompt, "PerpNegGuider", **sides, cfg="cfg", neg_scale=0.0))
    assert found.rows == (STEPS, STEPS)
    assert apart(found.picture, bench.run(prompt).picture) <= MARGIN


def test_perpnegguider_has_the_control_on_its_positive_side(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    empty = find(prompt, APPLY)["inputs"]["negative"]
    sides = {"positive": "positive", "negative": "negative", "empty_conditioning": empty}
    found, bare = (
        bench.run(guided(one, "PerpNegGuider", **sides, cfg="cfg", neg_scale=1.0))
        for one in (prompt, without_control(prompt))
    )
    assert found.rows == (STEPS, STEPS), "the third prompt has no control at all"
    assert apart(found.picture, bare.picture) > SEEN


@pytest.mark.parametrize(
    ("node", "inputs", "rows"),
    [
        ("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}, (STEPS, 2 * STEPS)),
        ("PerturbedAttentionGuidance", {"scale": 3.0}, (2 * STEPS, STEPS)),
    ],
)
def test_a_side_that_is_asked_for_alone_is_known(
    bench: Bench, node: str, inputs: dict[str, float], rows: tuple[int, int]
) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    found, door, bare = (
        bench.run(on_the_model(one, node, **inputs))
        for one in (prompt, through_the_model_door(prompt), without_control(prompt))
    )
    assert found.rows == door.rows == rows
    assert np.array_equal(found.picture, door.picture)
    assert apart(found.picture, bare.picture) > SEEN


# --- caches that skip steps, Deep Shrink ---


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_a_cache_that_never_skips_changes_nothing(bench: Bench, node: str, door: str) -> None:
    prompt = DOORS[door](first_picture(8))
    found = bench.run(cached(prompt, node, threshold=0.0))
    assert np.array_equal(found.picture, bench.run(prompt).picture)
    assert found.steps == (8, 8)


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_a_net_is_computed_at_the_steps_that_a_cache_leaves(bench: Bench, node: str) -> None:
    prompt = first_picture(8)
    found, door = (bench.run(cached(road(prompt), node, threshold=3.0)) for road in DOORS.values())
    skipped, steps = numbers(rf"{node} - skipped (\d+)/(\d+) steps", found.log)
    assert skipped > 1
    assert found.steps == door.steps == (steps - skipped, 8)
    assert np.array_equal(found.picture, door.picture)
    assert not np.array_equal(found.picture, bench.run(prompt).picture)


@pytest.mark.parametrize("after_skip", [True, False])
def test_deep_shrink_keeps_the_control(bench: Bench, after_skip: bool) -> None:
    prompt = first_picture(STEPS)
    found, door, bare = (
        bench.run(shrunk(one, after_skip=after_skip))
        for one in (prompt, through_the_model_door(prompt), without_control(prompt))
    )
    assert "control could not be applied" not in found.log + door.log
    assert found.steps == (STEPS, STEPS)
    assert np.array_equal(found.picture, door.picture)
    assert apart(found.picture, bare.picture) > SEEN
    assert apart(found.picture, bench.run(prompt).picture) > SEEN


# --- windows, LoRAs on prompts, tiles ---

PICTURES, WINDOW = 4, 2
SHORT = PICTURES - 1
"""In ComfyUI 0.3.64 windows need as many sigmas as there are pictures."""


def video(bench: Bench, factors: str) -> Prompt:
    """Four pictures, each with a hint of its own; factors: of the pictures."""
    hints = [bench.rings(20 + 10 * number) for number in range(PICTURES)]
    timing = {"unit": "timesteps (ComfyUI)", "frames": factors}
    return with_options(with_hint(first_picture(SHORT), *hints), "CLDM_ControlTiming", **timing)


def test_windows_have_the_hints_and_factors_of_their_pictures(bench: Bench) -> None:
    prompt = of_a_batch(video(bench, "1, 0, 0.25, 0.5"), PICTURES, 0, PICTURES)
    found = bench.run(in_windows(prompt, WINDOW))
    assert len(found.pictures) == PICTURES
    assert found.rows == (2 * SHORT * 3, 2 * SHORT), "both sides of one picture are left out"
    for first, factors in ((0, "1, 0"), (2, "0.25, 0.5")):
        alone = bench.run(of_a_batch(video(bench, factors), PICTURES, first, WINDOW))
        for offset, picture in enumerate(alone.pictures):
            assert apart(found.pictures[first + offset], picture) <= MARGIN
    bare = bench.run(in_windows(without_control(prompt), WINDOW))
    changes = [apart(a, b) for a, b in zip(found.pictures, bare.pictures, strict=True)]
    assert [change > SEEN for change in changes] == [True, False, True, True]


@pytest.mark.parametrize("door", DOORS)
def test_loras_on_prompts_are_loras_on_the_model(bench: Bench, door: str) -> None:
    prompt = DOORS[door](first_picture(STEPS))
    found = bench.run(hooked(prompt, LORA, "positive", "negative"))
    loaded, bare = (
        bench.run(on_the_model(one, "LoraLoaderModelOnly", lora_name=LORA, strength_model=1.0))
        for one in (prompt, without_control(first_picture(STEPS)))
    )
    assert apart(found.picture, loaded.picture) <= MARGIN
    assert apart(found.picture, bench.run(prompt).picture) > SEEN
    assert apart(found.picture, bare.picture) > SEEN


def test_a_lora_on_one_prompt_leaves_the_sides_known(bench: Bench) -> None:
    prompt = first_picture(STEPS, mode=CONTROL)
    found = bench.run(hooked(prompt, LORA, "positive"))
    assert found.rows == (STEPS, STEPS), "the negative prompt is in calls of its own"
    assert found.steps == (STEPS, STEPS)
    for other in (prompt, hooked(prompt, LORA, "positive", "negative")):
        assert apart(found.picture, bench.run(other).picture) > MARGIN


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize("mode", ["balanced", CONTROL])
def test_a_tile_has_its_own_part_of_the_hint(bench: Bench, mode: str, together: bool) -> None:
    prompt = first_picture(STEPS, mode=mode)
    first, second, bare = (
        bench.latents(tiled(one, together=together))
        for one in (
            with_hint(prompt, bench.rings(20, 28)),
            with_hint(prompt, bench.rings(20, 12)),
            without_control(prompt),
        )
    )
    assert (first - second)[..., :8].abs().max() <= 1e-3
    assert (first - second)[..., 8:].abs().max() > 0.1
    assert (first - bare)[..., :8].abs().max() > 0.1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_a_tile_has_its_own_part_of_the_mask(bench: Bench, together: bool, door: str) -> None:
    road = DOORS[door]
    prompt = with_hint(first_picture(STEPS), bench.rings(20, 28))
    found, whole, bare = (
        bench.latents(tiled(one, together=together))
        for one in (
            road(with_mask(prompt, bench.halves(128))),
            road(prompt),
            without_control(prompt),
        )
    )
    assert (found - whole)[..., :8].abs().max() <= 1e-3
    assert (found - bare)[..., 8:].abs().max() <= 1e-3
    assert (whole - bare)[..., :8].abs().max() > 0.1
    assert (whole - bare)[..., 8:].abs().max() > 0.1


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_tiles_through_the_model_door_are_cut_by_ourselves(bench: Bench, together: bool) -> None:
    prompt = with_hint(reusing(), bench.rings(20, 28))
    found, door = (bench.latents(tiled(road(prompt), together=together)) for road in DOORS.values())
    assert (found - door).abs().max() <= 1e-3


def test_a_mask_of_any_size_fits_an_area_of_the_whole_picture(bench: Bench) -> None:
    prompt = with_mask(first_picture(STEPS), bench.halves(256))
    changed = copy.deepcopy(prompt)
    texts = find(changed, APPLY)["inputs"]
    area = {"width": 128, "height": 128, "x": 0, "y": 0, "strength": 1.0}
    number = put(changed, "ConditioningSetArea", conditioning=texts["positive"], **area)
    texts["positive"] = [number, 0]
    found = bench.run(changed).picture
    assert apart(found, bench.run(prompt).picture) <= MARGIN
    assert apart(found, bench.run(first_picture(STEPS)).picture) > SEEN


# --- interrupts and errors in mid-sampling ---


@pytest.mark.parametrize("door", DOORS)
def test_an_interrupt_in_mid_sampling_leaves_nothing(bench: Bench, door: str) -> None:
    long = DOORS[door](reusing())
    find(long, SAMPLER)["inputs"]["steps"] = 200
    assert interrupted(bench.client, long).status == "interrupted"
    assert_as_new(bench, door)


@pytest.mark.parametrize("door", DOORS)
def test_running_out_of_memory_in_mid_sampling_leaves_nothing(bench: Bench, door: str) -> None:
    start = len(bench.host.log())
    failing = on_the_model(DOORS[door](reusing()), "TestRunsOutOfMemory", step=2)
    result = bench.client.queue(failing)
    assert result.status == "error"
    assert result.error["exception_type"].endswith("OutOfMemoryError")
    assert "Got an OOM, unloading all loaded models" in bench.host.log(start)
    held = json.loads(result.message().splitlines()[0])
    assert held["sampling"] == held["kept"] == held["encoded"] == 1, "at that moment"
    ((report,),) = result.applied.values()
    assert "steps: on at 3 of 4 (1-3)" in report
    assert_as_new(bench, door)


def assert_as_new(bench: Bench, door: str) -> None:
    """Nothing is held, and the same nodes make the picture that the host made when it was new."""
    prompt = DOORS[door](reusing())
    held = bench.remains(prompt)
    assert held.pop("controls") > 0
    assert set(held.values()) == {0}, held
    done = bench.run(prompt)
    assert node_id(prompt, SAMPLER) in done.result.executed
    stopped = node_id(prompt, APPLY if door == "conditioning" else PATCH)
    assert stopped not in done.result.executed, "it is the control that was stopped"
    assert np.array_equal(done.picture, bench.first[door])


# --- the host's nets and adapters, other packs ---

OURS, THEIRS, THEIR_APPLY = "CLDM_LoadControlNet", "ControlNetLoader", "ControlNetApplyAdvanced"
STACK = {
    "our net": (loader(OURS, "narrow"), APPLY, 0.5),
    "its net": (loader(THEIRS, "narrow"), THEIR_APPLY, 0.4),
    "our adapter": (loader(OURS, "adapter"), APPLY, 0.7),
    "its adapter": (loader(THEIRS, "adapter"), THEIR_APPLY, 0.6),
}


def stacked(*names: str) -> Prompt:
    """Controls behind each other, on the model that adapters fit."""
    prompt = without_control(first_picture(3))
    find(prompt, "EmptyLatentImage")["inputs"].update(width=64, height=64)
    find(prompt, SAMPLER)["inputs"]["model"] = [put(prompt, "TestLoadSmallModel"), 0]
    for name in names:
        load, node, strength = STACK[name]
        prompt = applied_again(prompt, load, node, strength=strength)
    return prompt


def test_nets_and_adapters_of_both_stack_in_any_order(bench: Bench) -> None:
    orders = list(permutations(STACK))[::7]
    assert len({order[0] for order in orders}) == len(STACK)
    expected, *others = (bench.run(stacked(*order)).picture for order in orders)
    assert max(apart(expected, other) for other in others) <= MARGIN
    for name in STACK:
        fewer = [other for other in STACK if other != name]
        assert apart(expected, bench.run(stacked(*fewer)).picture) > SEEN, name


@pytest.fixture
def advanced(bench: Bench) -> str:
    """The class of Advanced-ControlNet's Apply node."""
    name = "ACN_AdvancedControlNetApply_v2"
    if not (bench.host.base / "custom_nodes" / ADVANCED).exists():
        pytest.skip(f"no {ADVANCED} beside the host")
    if name not in bench.client.object_info():
        pytest.skip(f"{ADVANCED} doesn't load in ComfyUI {bench.host.version}")
    return name


def test_advanced_controlnet_applies_our_nets(bench: Bench, advanced: str) -> None:
    prompt = first_picture(STEPS, fit="as ComfyUI")
    changed = copy.deepcopy(prompt)
    find(changed, APPLY)["class_type"] = advanced
    assert np.array_equal(bench.run(changed).picture, bench.run(prompt).picture)


@pytest.mark.parametrize("order", [("ours", "theirs"), ("theirs", "ours")], ids="-".join)
def test_nets_of_advanced_controlnet_stack_with_ours(
    bench: Bench, advanced: str, order: tuple[str, str]
) -> None:
    theirs = {"class_type": "ACN_ControlNetLoaderAdvanced", "inputs": {"cnet": "canny.safetensors"}}
    kinds = {
        "ours": (loader(OURS, "canny"), APPLY, 0.5),
        "theirs": (theirs, advanced, 0.7),
        "the host's": (loader(THEIRS, "canny"), THEIR_APPLY, 0.7),
    }

    def picture(*names: str) -> np.ndarray:
        prompt = without_control(first_picture(STEPS))
        for name in names:
            load, node, strength = kinds[name]
            prompt = applied_again(prompt, load, node, strength=strength)
        return bench.run(prompt).picture

    found = picture(*order)
    assert apart(found, picture("ours", "the host's")) <= MARGIN
    assert apart(found, picture("ours")) > SEEN
