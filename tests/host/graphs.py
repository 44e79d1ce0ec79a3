"""API prompts of the first workflow with further nodes in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .prompts import Prompt, find, node_id

APPLY, PATCH, SAMPLER = "CLDM_ApplyControlNet", "CLDM_PatchModel", "KSampler"


def put(prompt: Prompt, class_type: str, **inputs: Any) -> str:
    """Another node in this prompt; its id."""
    number = str(max(map(int, prompt)) + 1)
    prompt[number] = {"class_type": class_type, "inputs": inputs}
    return number


def applier(prompt: Prompt) -> dict[str, Any]:
    """The inputs of what applies the first control."""
    nodes = (node for node in prompt.values() if node["class_type"] in (APPLY, PATCH))
    return next(nodes)["inputs"]  # type: ignore[no-any-return]


def on_the_model(prompt: Prompt, class_type: str, **inputs: Any) -> Prompt:
    """The prompt with a node between the sampler and its model."""
    changed = copy.deepcopy(prompt)
    sampler = find(changed, SAMPLER)["inputs"]
    sampler["model"] = [put(changed, class_type, model=sampler["model"], **inputs), 0]
    return changed


def with_options(prompt: Prompt, class_type: str, **inputs: Any) -> Prompt:
    """The prompt with a node for the options of its control."""
    changed = copy.deepcopy(prompt)
    applier(changed)["options"] = [put(changed, class_type, **inputs), 0]
    return changed


def with_hint(prompt: Prompt, *names: str) -> Prompt:
    """The prompt with input pictures as its hints, one for each picture of a batch."""
    changed = copy.deepcopy(prompt)
    hints, *others = [[put(changed, "LoadImage", image=name), 0] for name in names]
    for other in others:
        hints = [put(changed, "ImageBatch", image1=hints, image2=other), 0]
    applier(changed)["image"] = hints
    return changed


def with_mask(prompt: Prompt, name: str) -> Prompt:
    """The prompt with an input picture as the mask of its control."""
    changed = copy.deepcopy(prompt)
    applier(changed)["mask"] = [put(changed, "LoadImageMask", image=name, channel="red"), 0]
    return changed


def guided(prompt: Prompt, guider: str, **inputs: Any) -> Prompt:
    """The prompt with SamplerCustomAdvanced and a guider in the place of KSampler.

    inputs: the guider's; the name of an input of KSampler stands for what that had.
    """
    changed = copy.deepcopy(prompt)
    number = node_id(changed, SAMPLER)
    old = changed[number]["inputs"]
    given = {name: old[v] if isinstance(v, str) and v in old else v for name, v in inputs.items()}
    schedule = {name: old[name] for name in ("model", "scheduler", "steps", "denoise")}
    parts = {
        "noise": put(changed, "RandomNoise", noise_seed=old["seed"]),
        "guider": put(changed, guider, model=old["model"], **given),
        "sampler": put(changed, "KSamplerSelect", sampler_name=old["sampler_name"]),
        "sigmas": put(changed, "BasicScheduler", **schedule),
    }
    links = {name: [part, 0] for name, part in parts.items()}
    changed[number] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {**links, "latent_image": old["latent_image"]},
    }
    return changed


def loader(class_type: str, name: str) -> dict[str, Any]:
    """A node that loads a net from the host's folder."""
    return {"class_type": class_type, "inputs": {"control_net_name": f"{name}.safetensors"}}


def applied_again(prompt: Prompt, load: Mapping[str, Any], node: str, **inputs: Any) -> Prompt:
    """The prompt with another control in front of its sampler, with the same hint.

    load: the node that loads the net; node: the class of the one that applies it.
    """
    changed = copy.deepcopy(prompt)
    sampler = find(changed, SAMPLER)["inputs"]
    sides = {side: sampler[side] for side in ("positive", "negative")}
    net = put(changed, load["class_type"], **load["inputs"])
    given = {"image": applier(changed)["image"], "start_percent": 0.0, "end_percent": 1.0}
    number = put(changed, node, **sides, control_net=[net, 0], **given, **inputs)
    sampler.update(positive=[number, 0], negative=[number, 1])
    return changed


def hooked(prompt: Prompt, lora: str, *sides: str) -> Prompt:
    """The prompt with a LoRA on the texts of some sides, in front of the control."""
    changed = copy.deepcopy(prompt)
    strengths = {"strength_model": 1.0, "strength_clip": 0.0}
    hooks = [put(changed, "CreateHookLora", lora_name=lora, **strengths), 0]
    given = next(node["inputs"] for node in changed.values() if "positive" in node["inputs"])
    for side in sides:
        how = {"strength": 1.0, "set_cond_area": "default", "hooks": hooks}
        number = put(changed, "ConditioningSetProperties", cond_NEW=given[side], **how)
        given[side] = [number, 0]
    return changed


def cached(prompt: Prompt, node: str, threshold: float) -> Prompt:
    """The prompt with EasyCache or LazyCache."""
    when = {"start_percent": 0.15, "end_percent": 0.95}
    return on_the_model(prompt, node, reuse_threshold=threshold, **when, verbose=False)


def shrunk(prompt: Prompt, *, after_skip: bool) -> Prompt:
    """The prompt with Deep Shrink."""
    inputs = {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.6}
    methods = {"downscale_method": "bicubic", "upscale_method": "bicubic"}
    inputs |= {"downscale_after_skip": after_skip, **methods}
    return on_the_model(prompt, "PatchModelAddDownscale", **inputs)


def of_a_batch(prompt: Prompt, batch: int, first: int, count: int) -> Prompt:
    """The prompt for some pictures of a batch: with their noise, and their hints."""
    changed = copy.deepcopy(prompt)
    part = {"batch_index": first, "length": count}
    hints = applier(changed)
    hints["image"] = [put(changed, "ImageFromBatch", image=hints["image"], **part), 0]
    find(changed, "EmptyLatentImage")["inputs"]["batch_size"] = batch
    sampler = find(changed, SAMPLER)["inputs"]
    latent = put(changed, "LatentFromBatch", samples=sampler["latent_image"], **part)
    sampler["latent_image"] = [latent, 0]
    return changed


def in_windows(prompt: Prompt, length: int) -> Prompt:
    """The prompt with a window that slides over its pictures, without overlap."""
    size = {"context_length": length, "context_overlap": 0, "context_stride": 1, "dim": 0}
    how = {"context_schedule": "standard_static", "fuse_method": "pyramid", "closed_loop": False}
    newer = {"freenoise": False, "cond_retain_index_list": "", "split_conds_to_windows": False}
    return on_the_model(prompt, "ContextWindowsManual", **size, **how, **newer)


def tiled(prompt: Prompt, *, together: bool = False) -> Prompt:
    """The prompt sampled in tiles of 64 columns by a pack that hands on the hint's parts."""
    changed = copy.deepcopy(prompt)
    sampler = find(changed, SAMPLER)["inputs"]
    given = {name: sampler[name] for name in ("model", "positive", "negative")}
    number = put(changed, "TestSamplesInTiles", **given, width=64, together=together)
    sampler.update({name: [number, slot] for slot, name in enumerate(given)})
    return changed


def without(prompt: Prompt, class_type: str) -> Prompt:
    """The prompt without the nodes of a class."""
    kept = {key: node for key, node in prompt.items() if node["class_type"] != class_type}
    return copy.deepcopy(kept)
