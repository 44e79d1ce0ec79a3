"""One picture in the real host, by every road: all give the same, bit for bit."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnet_pack.cldm_core import TINY, ControlNet, ControlNetConfig, tiny
from controlnet_pack.cldm_core.checkpoint import config_metadata, read, save

from .client import HostClient
from .prompts import (
    Prompt,
    find,
    first_picture,
    interrupted,
    node_id,
    sampled,
    through_the_model_door,
    without_control,
)
from .server import HostServer


def with_the_host_s_apply(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    find(changed, "CLDM_ApplyControlNet")["class_type"] = "ControlNetApplyAdvanced"
    return changed


def with_the_host_s_loader(prompt: Prompt) -> Prompt:
    changed = with_the_host_s_apply(prompt)
    loader = find(changed, "CLDM_LoadControlNet")
    loader.update(class_type="ControlNetLoader", inputs={"control_net_name": "canny.safetensors"})
    return changed


def with_our_loader_from_a_file(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    find(changed, "CLDM_LoadControlNet")["inputs"]["control_net_name"] = "canny.safetensors"
    return changed


@pytest.fixture(autouse=True)
def _files(host: HostServer) -> None:
    """The embedded net as a file of the host's folder, for both loaders."""
    shutil.copy(tiny.weights("canny"), host.models("controlnet") / "canny.safetensors")


@pytest.fixture
def run(client: HostClient) -> Callable[[Prompt], np.ndarray]:
    """The picture that a prompt gives."""

    def picture(prompt: Prompt) -> np.ndarray:
        result = client.queue(prompt)
        assert result.status == "success", result.message()
        (image,) = client.images(result, node_id(prompt, "SaveImage"))
        return image

    return picture


@pytest.mark.parametrize(
    "settings",
    [{}, {"strength": 0.6}, {"start_percent": 0.3, "end_percent": 0.7}],
    ids=["plain", "weak", "window"],
)
@pytest.mark.parametrize(
    "road",
    [
        with_the_host_s_apply,
        with_the_host_s_loader,
        with_our_loader_from_a_file,
        through_the_model_door,
    ],
)
def test_every_road_gives_the_same_picture(run, road, settings: dict[str, float]) -> None:
    prompt = first_picture(**settings, fit="as ComfyUI")
    expected = run(prompt)
    assert np.array_equal(run(road(prompt)), expected)
    assert not np.array_equal(run(without_control(prompt)), expected)


def test_shared_work_changes_nothing_but_the_last_bits(run) -> None:
    exact, shared = run(first_picture(fit="as ComfyUI")), run(first_picture())
    apart = np.abs(exact.astype(int) - shared)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def on_the_positive_side(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    apply = find(changed, "ControlNetApplyAdvanced")["inputs"]
    find(changed, "KSampler")["inputs"]["negative"] = apply["negative"]
    return changed


@pytest.mark.parametrize("road", [lambda prompt: prompt, through_the_model_door])
def test_a_net_named_shuffle_is_pooled_on_the_positive_side(run, host: HostServer, road) -> None:
    # Without metadata, as public files are: the name is all that there is to go by. The host pools
    # such a net too, but applies it to both sides, against its author's advice.
    name = "tiny_shuffle.safetensors"
    save(read(tiny.weights("canny")).tensors, host.models("controlnet") / name)
    ours = with_our_loader_from_a_file(first_picture())
    find(ours, "CLDM_LoadControlNet")["inputs"]["control_net_name"] = name
    theirs = with_the_host_s_loader(first_picture())
    find(theirs, "ControlNetLoader")["inputs"]["control_net_name"] = name
    difference = run(road(ours)).astype(int) - run(on_the_positive_side(theirs))
    # The host samples the sides in batches of their own, so the last bits may differ.
    assert abs(difference).max() <= 1
    find(ours, "CLDM_LoadControlNet")["inputs"]["pooling"] = "off"
    assert np.array_equal(run(ours), run(first_picture()))


@pytest.mark.parametrize(("stored", "name"), [(False, "my_shuffle"), (True, "plain")])
def test_what_a_file_says_of_pooling_goes_before_its_name(
    run, host: HostServer, stored: bool, name: str
) -> None:
    config = ControlNetConfig(TINY, global_average_pooling=stored)
    path = host.models("controlnet") / f"{name}.safetensors"
    save(read(tiny.weights("canny")).tensors, path, config_metadata(config))
    prompt = with_our_loader_from_a_file(first_picture())
    loader = find(prompt, "CLDM_LoadControlNet")["inputs"]
    loader["control_net_name"] = path.name
    expected = copy.deepcopy(prompt)
    find(expected, "CLDM_LoadControlNet")["inputs"]["pooling"] = "on" if stored else "off"
    assert np.array_equal(run(prompt), run(expected))
    assert np.array_equal(run(prompt), run(first_picture())) != stored


@pytest.mark.parametrize("road", [lambda prompt: prompt, through_the_model_door])
def test_strength_0_is_no_control(run, road) -> None:
    prompt = first_picture(strength=0.0)
    assert np.array_equal(run(road(prompt)), run(without_control(prompt)))


def chained(prompt: Prompt, first: str, second: str) -> Prompt:
    """A second control behind the first: `first` and `second` are classes of loader nodes."""
    changed = copy.deepcopy(prompt)
    apply = find(changed, "CLDM_ApplyControlNet")
    names = {"CLDM_LoadControlNet": "embedded: canny", "ControlNetLoader": "canny.safetensors"}
    for key, loader in (("100", first), ("101", second)):
        changed[key] = {"class_type": loader, "inputs": {"control_net_name": names[loader]}}
    apply["inputs"]["control_net"] = ["100", 0]
    inputs = {**apply["inputs"], "control_net": ["101", 0], "strength": 0.5}
    apply_id = node_id(changed, "CLDM_ApplyControlNet")
    inputs |= {"positive": [apply_id, 0], "negative": [apply_id, 1]}
    changed["102"] = {"class_type": "CLDM_ApplyControlNet", "inputs": inputs}
    find(changed, "KSampler")["inputs"].update(positive=["102", 0], negative=["102", 1])
    return changed


def test_chains_mix_with_the_host_s_own_nets(run) -> None:
    ours, theirs = "CLDM_LoadControlNet", "ControlNetLoader"
    prompt = first_picture(fit="as ComfyUI")
    expected = run(chained(prompt, ours, ours))
    assert not np.array_equal(expected, run(prompt))
    for first, second in ((ours, theirs), (theirs, ours), (theirs, theirs)):
        assert np.array_equal(run(chained(prompt, first, second)), expected)


def test_both_doors_add_up(run) -> None:
    prompt = first_picture()
    both = through_the_model_door(prompt)
    patch = find(both, "CLDM_PatchModel")["inputs"]
    apply = copy.deepcopy(find(prompt, "CLDM_ApplyControlNet"))
    apply["inputs"]["strength"] = 0.5
    both["200"] = apply
    find(both, "KSampler")["inputs"].update(positive=["200", 0], negative=["200", 1])
    assert patch["strength"] == 1.0
    ours = "CLDM_LoadControlNet"
    assert np.array_equal(run(both), run(chained(prompt, ours, ours)))


def test_batches_and_hints_of_another_size(run, client: HostClient) -> None:
    prompt = first_picture()
    find(prompt, "EmptyLatentImage")["inputs"]["batch_size"] = 2
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    pictures = client.images(result, node_id(prompt, "SaveImage"))
    assert len(pictures) == 2
    prompt = first_picture()
    find(prompt, "EmptyLatentImage")["inputs"].update(width=96, height=160)
    assert run(prompt).shape == (160, 96, 3)


def test_prompts_may_be_empty_weighted_and_long(run) -> None:
    for text in ("", "(red:1.3) crab", "crab, " * 40):
        prompt = first_picture(steps=2)
        find(prompt, "CLIPTextEncode")["inputs"]["text"] = text
        assert run(prompt).shape == (128, 128, 3)


@pytest.mark.parametrize("road", [lambda prompt: prompt, through_the_model_door])
def test_an_interrupted_run_leaves_no_trace(run, client: HostClient, road) -> None:
    prompt = road(first_picture())
    expected = run(prompt)
    long = road(first_picture(steps=200))
    assert interrupted(client, long).status == "interrupted"
    find(prompt, "SaveImage")["inputs"]["filename_prefix"] = "again"
    find(prompt, "KSampler")["inputs"]["denoise"] = 0.9999  # so that the host must sample anew
    again = run(prompt)
    assert again.shape == expected.shape
    find(prompt, "KSampler")["inputs"]["denoise"] = 1.0
    assert np.array_equal(run(prompt), expected)


def other_family(path: Path) -> None:
    config = ControlNetConfig(replace(TINY, context_dim=192))
    save(ControlNet(config).half().state_dict(), path, config_metadata(config))


def truncated(path: Path) -> None:
    path.write_bytes(tiny.weights("canny").read_bytes()[:100_000])


def base_model(path: Path) -> None:
    shutil.copy(tiny.weights("unet"), path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (other_family, "reads text embeddings 192 wide, and this prompt's are 128 wide"),
        (truncated, "it is truncated, damaged or something else"),
        (base_model, "holds a base model, which this pack doesn't load: load it with Load Ch"),
    ],
)
def test_bad_files_are_refused_with_a_sentence(
    host: HostServer, client: HostClient, make: Callable[[Path], None], sentence: str
) -> None:
    make(host.models("controlnet") / "bad.safetensors")
    prompt = first_picture()
    find(prompt, "CLDM_LoadControlNet")["inputs"]["control_net_name"] = "bad.safetensors"
    result = client.queue(prompt)
    assert result.status == "error"
    assert sentence in result.message()
    assert sampled(result, prompt) == []


def test_a_model_of_another_family_is_refused_by_the_model_door(
    host: HostServer, client: HostClient
) -> None:
    other_family(host.models("controlnet") / "bad.safetensors")
    prompt = through_the_model_door(first_picture())
    find(prompt, "CLDM_LoadControlNet")["inputs"]["control_net_name"] = "bad.safetensors"
    result = client.queue(prompt)
    assert result.status == "error"
    assert "a base model with text embeddings of width 192" in result.message()


def test_settings_the_wrong_way_round_are_refused(client: HostClient) -> None:
    result = client.queue(first_picture(start_percent=0.8, end_percent=0.2))
    assert result.status == "error"
    assert "start_percent is 0.8, behind end_percent" in result.message()


IN_HOST = """
import comfy.sample, torch
files, load = pack("nodes.host.files"), pack("nodes.host.embedded")
apply = pack("nodes.apply")
tiny = pack("cldm_core").tiny if hasattr(pack("cldm_core"), "tiny") else pack("cldm_core.tiny")
torch.set_grad_enabled(False)
model, clip = load.load_model(), load.load_clip()
control = files.load_control(tiny.weights("canny")).control
text = clip.encode_from_tokens_scheduled(clip.tokenize("crab"))
hint = torch.zeros(1, 128, 128, 3)
hint[:, 40:80, 40] = 1
positive, negative = apply.ApplyControlNet.execute(text, text, control, hint, 1.0, 0.0, 1.0).args
used = positive[0][1]["control"]
encodings = []
encode = type(control.net).encode_hint
type(control.net).encode_hint = lambda net, hint: encodings.append(1) or encode(net, hint)

def sample(callback=None):
    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 4, 3.0, "euler", "normal", positive, negative, latent,
                               callback=callback, disable_pbar=True)

def fail(step, *_):
    if step == 2:
        raise RuntimeError("stopped in mid-sampling")

first = sample()
once = len(encodings)
try:
    sample(fail)
    stopped = False
except RuntimeError:
    stopped = True
state = [len(used.encoded), used.model_sampling is None, used.timestep_range is None]
callbacks = sum(len(found) for kind in model.callbacks.values() for found in kind.values())
again = sample()

# A grey hint and one with transparency are the RGB hint of the same picture; their memory layouts
# differ, and with them the last bits of a convolution.
def with_hint(picture):
    return apply.ApplyControlNet.execute(text, text, control, picture, 1.0, 0.0, 1.0).args

positive, negative = with_hint(hint[..., :1])
grey = torch.allclose(sample(), first, atol=1e-3)
positive, negative = with_hint(torch.cat([hint, hint[..., :1]], dim=-1))
second = sample()
rgba = torch.allclose(second, first, atol=1e-3)

# A pack that works in tiles puts another hint in between two steps.
swapped = positive[0][1]["control"]
def swap(step, *_):
    if step == 1:
        swapped.cond_hint_original = 1 - swapped.cond_hint_original

follows = torch.equal(second, sample()) and not torch.equal(second, sample(swap))
hint[:, 5, 5] = float("nan")
try:
    broken = apply.ApplyControlNet.execute(text, text, control, hint, 1.0, 0.0, 1.0).args[0]
    positive = broken
    sample()
    nan = ""
except ValueError as error:
    nan = str(error)
report(once=once, stopped=stopped, state=state, callbacks=callbacks,
       equal=torch.equal(first, again), nan=nan, grey=grey, rgba=rgba, follows=follows,
       models=len(used.get_models()))
"""


def test_state_of_one_sampling_is_dropped(in_host: Callable[..., dict[str, Any]]) -> None:
    found = in_host(IN_HOST)
    assert found["stopped"]
    assert found["once"] == 1, "the hint is encoded once per sampling"
    assert found["state"] == [0, True, True]
    assert found["callbacks"] == 0
    assert found["equal"]
    assert found["models"] == 1
    assert found["grey"]
    assert found["rgba"]
    assert found["follows"]
    assert "NaN or infinite" in found["nan"]
