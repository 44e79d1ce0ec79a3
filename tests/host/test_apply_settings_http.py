"""Settings of applied control over HTTP: masks of a batch, texts, units, other kinds of nets."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from controlnet_pack.cldm_core import TINY, ControlNetConfig, tiny
from controlnet_pack.cldm_core.checkpoint import read, save
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.low_rank import extract_control_lora
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

from ..cldm_core.seeded import seeded_module
from .bench import apart
from .client import HostClient, Result
from .graphs import APPLY, SAMPLER, applier, put, with_mask, with_options
from .prompts import (
    Prompt,
    find,
    first_picture,
    node_id,
    sampled,
    through_the_model_door,
    without_control,
)
from .server import HostServer

SIZE = 128
MARGIN = 1
"""Of 255: in batches of another size the same sums run in another order."""
SEEN = 20
"""Of 255: what control makes of a picture."""
LOADER = "CLDM_LoadControlNet"


@pytest.fixture
def run(client: HostClient) -> Callable[[Prompt], tuple[list[np.ndarray], Result]]:
    """The pictures that a prompt gives, and what became of it."""

    def pictures(prompt: Prompt) -> tuple[list[np.ndarray], Result]:
        result = client.queue(prompt)
        assert result.status == "success", result.message()
        return client.images(result, node_id(prompt, "SaveImage")), result

    return pictures


def report(result: Result) -> str:
    """What was told of the only control."""
    ((text,),) = result.applied.values()
    return text


def half(host: HostServer, name: str, rows: slice, columns: slice) -> str:
    """An input picture, white in a part of it; its name."""
    drawn = np.zeros((SIZE, SIZE, 3))
    drawn[rows, columns] = 1
    return host.save_input(f"{name}.png", drawn)


def test_every_picture_of_a_batch_has_its_mask(run, host: HostServer) -> None:
    all_of, first = slice(None), slice(SIZE // 2)
    names = [half(host, "left", all_of, first), half(host, "top", first, all_of)]
    batch = first_picture()
    find(batch, "EmptyLatentImage")["inputs"]["batch_size"] = 2
    sampler = find(batch, SAMPLER)["inputs"]
    same = {"samples": sampler["latent_image"], "seed_behavior": "fixed"}
    sampler["latent_image"] = [put(batch, "LatentBatchSeedBehavior", **same), 0]
    one, other = ([put(batch, "LoadImage", image=name), 0] for name in names)
    both = put(batch, "ImageBatch", image1=one, image2=other)
    applier(batch)["mask"] = [put(batch, "ImageToMask", image=[both, 0], channel="red"), 0]
    pictures, _ = run(batch)
    for found, name in zip(pictures, names, strict=True):
        ((alone,), _) = run(with_mask(first_picture(), name))
        assert apart(found, alone) <= MARGIN
    assert apart(*pictures) > SEEN


def weighed(preset: str, text: str) -> Prompt:
    return with_options(
        first_picture(), "CLDM_ControlWeights", curve="auto", preset=preset, weights=text
    )


def test_blocks_are_weighed_by_a_text_or_a_preset(run) -> None:
    ((preset,), result) = run(weighed("only early blocks", ""))
    ((text,), _) = run(weighed("text", "0-2: 1, rest: 0"))
    ((plain,), _) = run(first_picture())
    shown = [line for line in report(result).splitlines() if "weights of" in line]
    assert shown == ["weights of 7 blocks: 1, 1, 1, 0, 0, 0, 0"]
    assert np.array_equal(preset, text)
    assert apart(preset, plain) > MARGIN


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (weighed("text", "1, 2, 3"), "3 weights were given: write 7 numbers with commas"),
        (first_picture(schedule="0.5 = 1"), "is no keyframe: write position: strength"),
    ],
    ids=["weights", "schedule"],
)
def test_texts_that_cannot_be_read_are_refused(
    client: HostClient, prompt: Prompt, sentence: str
) -> None:
    result = client.queue(prompt)
    assert result.status == "error"
    assert sentence in result.message()
    assert sampled(result, prompt) == []


def test_a_window_of_steps_is_told(run) -> None:
    window = first_picture(start_percent=0.25, end_percent=0.5)
    steps = with_options(window, "CLDM_ControlTiming", unit="steps (WebUI)", frames="")
    _, result = run(steps)
    assert "steps: on at 2 of 4 (2-3)" in report(result)


# --- other kinds of nets ---


def of_file(host: HostServer, name: str, state: Any, **apply: Any) -> Prompt:
    """The prompt with a net that is saved in the host's folder."""
    save(state, host.models("controlnet") / f"{name}.safetensors")
    prompt = first_picture(**apply)
    find(prompt, LOADER)["inputs"]["control_net_name"] = f"{name}.safetensors"
    return prompt


def union(host: HostServer) -> Prompt:
    net = seeded_module(UnionControlNet, UnionConfig(ControlNetConfig(TINY), 8), 3)
    return of_file(host, "union", net.state_dict())


def lllite(host: HostServer, **apply: Any) -> Prompt:
    place = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    config = LLLiteConfig((LLLiteModuleConfig(place, TINY.model_channels, 1, 32, 16),))
    return of_file(host, "lllite", seeded_module(ControlLLLite, config, 3).state_dict(), **apply)


def typed(prompt: Prompt, kind: str) -> Prompt:
    changed = copy.deepcopy(prompt)
    inputs = applier(changed)
    number = put(
        changed, "CLDM_SetControlType", control_net=inputs["control_net"], control_type=kind
    )
    inputs["control_net"] = [number, 0]
    return changed


@pytest.mark.parametrize(
    ("made", "told"),
    [(lambda host: typed(union(host), "depth"), "union ControlNet"), (lllite, "LLLite")],
    ids=["union", "lllite"],
)
def test_other_kinds_act_alike_through_both_doors(run, host: HostServer, made, told: str) -> None:
    prompt = made(host)
    ((found,), result) = run(prompt)
    ((door,), _) = run(through_the_model_door(prompt))
    ((bare,), _) = run(without_control(prompt))
    assert told in report(result)
    assert np.array_equal(found, door)
    assert apart(found, bare) > MARGIN


def lora(host: HostServer) -> Prompt:
    base, net = read(tiny.weights("unet")), read(tiny.weights("canny"))
    state, _ = extract_control_lora(net, base, 4)
    prompt = of_file(host, "lora", state)
    find(prompt, LOADER)["inputs"]["precision"] = "bf16"
    return prompt


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (union, "must be told what its hint is: put Set Control Type (CLDM)"),
        (
            lambda host: lllite(host, mode="my prompt is more important"),
            "and a ControlNet-LLLite has none: choose balanced",
        ),
        (lora, "computes in their type: set precision to auto"),
    ],
    ids=["no type", "a mode", "bf16"],
)
def test_what_a_kind_cannot_do_is_refused(
    host: HostServer, client: HostClient, made, sentence: str
) -> None:
    prompt = made(host)
    result = client.queue(prompt)
    assert result.status == "error"
    assert sentence in result.message()
    assert sampled(result, prompt) == []


def test_nets_of_the_host_s_loader_take_our_settings(run, host: HostServer) -> None:
    shutil.copy(tiny.weights("canny"), host.models("controlnet") / "canny.safetensors")
    settings = {"end_percent": 0.7, "schedule": "0: 1, 1: 0.5", "fit": "as ComfyUI"}
    mask = half(host, "left", slice(None), slice(SIZE // 2))
    ours = with_mask(first_picture(**settings), mask)
    theirs = copy.deepcopy(ours)
    name = {"control_net_name": "canny.safetensors"}
    find(theirs, LOADER).update(class_type="ControlNetLoader", inputs=name)
    ((expected,), _), ((found,), result) = run(ours), run(theirs)
    ((plain,), _) = run(first_picture(fit="as ComfyUI"))
    assert "a net of ComfyUI's own loader" in report(result)
    assert apart(found, expected) <= MARGIN
    assert apart(found, plain) > SEEN
    refused = copy.deepcopy(theirs)
    find(refused, APPLY)["inputs"]["mode"] = "my prompt is more important"
    result = host.client.queue(refused)
    assert "nobody defines soft weights for its family" in result.message()
