"""Schedule and mask of the Apply nodes, on nets of this pack and of the host's own loader."""

import copy
import shutil
from typing import Any

import numpy as np
import pytest

from controlnet_pack.cldm_core import tiny

from .client import HostClient
from .prompts import Prompt, find, first_picture, node_id, through_the_model_door
from .server import HostServer

SIDE = 128


@pytest.fixture
def run(host: HostServer, client: HostClient):
    shutil.copy(tiny.weights("canny"), host.models("controlnet") / "canny.safetensors")

    def picture(prompt: Prompt) -> np.ndarray:
        result = client.queue(prompt)
        assert result.status == "success", result.message()
        (image,) = client.images(result, node_id(prompt, "SaveImage"))
        return image

    return picture


def shaped(**inputs: Any) -> Prompt:
    """The workflow with further inputs on its Apply node, computed as in the host."""
    return first_picture(fit="as ComfyUI", **inputs)


def masked(prompt: Prompt, value: float) -> Prompt:
    changed = copy.deepcopy(prompt)
    inputs = {"value": value, "width": SIDE, "height": SIDE}
    changed["300"] = {"class_type": "SolidMask", "inputs": inputs}
    find(changed, "CLDM_ApplyControlNet")["inputs"]["mask"] = ["300", 0]
    return changed


def by_the_host_s_loader(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    loader = find(changed, "CLDM_LoadControlNet")
    loader.update(class_type="ControlNetLoader", inputs={"control_net_name": "canny.safetensors"})
    return changed


@pytest.mark.parametrize("loader", [lambda prompt: prompt, by_the_host_s_loader])
def test_schedules_and_masks_act_alike_on_every_net(run, loader) -> None:
    plain = run(loader(shaped()))
    none = run(shaped(strength=0.0))
    half = run(shaped(strength=0.5))
    assert np.array_equal(run(loader(shaped(schedule="0: 1"))), plain)
    assert np.array_equal(run(loader(shaped(schedule="0: 0"))), none)
    assert np.array_equal(run(loader(shaped(schedule="0: 0.5"))), half)
    assert np.array_equal(run(loader(masked(shaped(), 1.0))), plain)
    assert np.array_equal(run(loader(masked(shaped(), 0.0))), none)
    windowed = run(loader(shaped(end_percent=0.5)))
    assert np.array_equal(run(loader(shaped(schedule="0: 1 hold, 0.5: 0"))), windowed)
    assert not np.array_equal(windowed, run(loader(shaped(start_percent=0.5))))
    fading = run(loader(shaped(schedule="0: 1, 1: 0")))
    assert not any(np.array_equal(fading, other) for other in (plain, none, half))


def test_both_doors_and_both_loaders_give_the_same_shaped_picture(run) -> None:
    prompt = masked(shaped(schedule="0: 1 cosine, 0.7: 0.2"), 0.6)
    expected = run(prompt)
    assert np.array_equal(run(through_the_model_door(prompt)), expected)
    assert np.array_equal(run(by_the_host_s_loader(prompt)), expected)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"schedule": "from the start"}, "'from the start' is no keyframe"),
        ({"schedule": "0.6: 1, 0.5: 1"}, "put them in order"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(
    client: HostClient, inputs: dict[str, str], sentence: str
) -> None:
    result = client.queue(shaped(**inputs))
    assert result.status == "error"
    assert sentence in result.message()
