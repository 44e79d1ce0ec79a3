"""Record Control and Control Inspector in a sampling of the host."""

import copy
import shutil
from typing import Any

import numpy as np
import pytest

from controlnet_pack.cldm_core import tiny
from controlnet_pack.cldm_core.sheets_heat import Layout
from controlnet_pack.cldm_core.sheets_plot import WIDTH

from .client import HostClient, Result
from .prompts import Prompt, find, first_picture, node_id
from .server import HostServer

RECORD, INSPECT = "400", "401"


@pytest.fixture(autouse=True)
def _files(host: HostServer) -> None:
    shutil.copy(tiny.weights("canny"), host.models("controlnet") / "canny.safetensors")


def recorded(prompt: Prompt, **inspector: Any) -> Prompt:
    """The prompt with a record in front of its sampler, and an inspector behind it."""
    changed = copy.deepcopy(prompt)
    sampler = find(changed, "KSampler")["inputs"]
    sides = {side: sampler[side] for side in ("positive", "negative")}
    changed[RECORD] = {"class_type": "CLDM_RecordControl", "inputs": sides}
    sampler.update(positive=[RECORD, 0], negative=[RECORD, 1])
    inputs = {"record": [RECORD, 2], "latent": [node_id(changed, "KSampler"), 0], **inspector}
    changed[INSPECT] = {"class_type": "CLDM_ControlInspector", "inputs": inputs}
    return changed


def done(client: HostClient, prompt: Prompt) -> Result:
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    return result


def picture(client: HostClient, prompt: Prompt) -> np.ndarray:
    (image,) = client.images(done(client, prompt), node_id(prompt, "SaveImage"))
    return image


def test_a_recorded_picture_is_the_same(client: HostClient) -> None:
    prompt = first_picture()
    assert np.array_equal(picture(client, recorded(prompt)), picture(client, prompt))


def test_the_inspector_shows_both_pictures(client: HostClient) -> None:
    result = done(client, recorded(first_picture(7)))
    sheet, plot = client.images(result, INSPECT)
    blocks, steps = 7, 7
    layout = Layout.of(("z0",) * (blocks - 1) + ("middle",), steps, 1.0)
    assert sheet.shape == (layout.height, layout.width, 3)
    assert plot.shape[1] == WIDTH


def test_the_record_node_says_what_it_records(client: HostClient) -> None:
    result = done(client, recorded(first_picture()))
    (text,) = client.history(result.prompt_id)[RECORD]["text"]
    assert text.startswith("recorded: ")
    assert "ControlNet" in text


def test_steps_out_of_the_window_are_off(client: HostClient) -> None:
    whole, half = (
        client.images(done(client, recorded(first_picture(6, end_percent=end))), INSPECT)[0]
        for end in (1.0, 0.5)
    )
    last = Layout.of(("z0",) * 6 + ("middle",), 6, 1.0).place(6, 5)
    inside = (
        slice(round(last.top) + 8, round(last.bottom) - 8),
        slice(round(last.left) + 8, round(last.right) - 8),
    )
    assert whole[inside].max() > 0x60
    assert half[inside].max() < 0x40


def test_nets_of_the_host_s_loader_are_recorded(client: HostClient) -> None:
    prompt = first_picture(schedule="0: 1, 1: 0.5")
    find(prompt, "CLDM_LoadControlNet").update(
        class_type="ControlNetLoader", inputs={"control_net_name": "canny.safetensors"}
    )
    sheet, _ = client.images(done(client, recorded(prompt)), INSPECT)
    assert sheet.max() > 0x80


def test_another_seed_is_recorded_anew(client: HostClient) -> None:
    prompt = recorded(first_picture())
    first = client.images(done(client, prompt), INSPECT)[0]
    find(prompt, "KSampler")["inputs"]["seed"] += 1
    result = done(client, prompt)
    assert RECORD in result.cached
    assert not np.array_equal(client.images(result, INSPECT)[0], first)


def test_the_finished_picture_can_stand_on_the_sheet(client: HostClient) -> None:
    prompt = first_picture()
    with_picture = recorded(prompt, image=[node_id(prompt, "VAEDecode"), 0])
    plain, shown = (
        client.images(done(client, one), INSPECT)[0] for one in (recorded(prompt), with_picture)
    )
    assert plain.shape == shown.shape
    changed = (plain != shown).any(axis=-1)
    assert changed[:140, -140:].any()
    assert not changed[140:].any()


def test_conditioning_without_control_is_refused(client: HostClient) -> None:
    prompt = recorded(first_picture(strength=0.0))
    result = client.queue(prompt)
    assert result.status == "error"
    assert result.message().startswith("There is no control of this pack on these prompts")


def test_a_record_that_no_sampler_filled_is_refused(client: HostClient) -> None:
    prompt = recorded(first_picture(strength=0.987))
    find(prompt, "CLDM_ControlInspector")["inputs"]["latent"] = [
        node_id(prompt, "EmptyLatentImage"),
        0,
    ]
    for sampled in ("SaveImage", "VAEDecode", "KSampler"):
        del prompt[node_id(prompt, sampled)]
    result = client.queue(prompt)
    assert result.status == "error"
    assert result.message().startswith("Nothing was recorded")
