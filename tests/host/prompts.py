"""The API prompt of the first workflow, and what tests make of it."""

import copy
import json
from pathlib import Path
from typing import Any

from .client import HostClient, Result

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
Prompt = dict[str, dict[str, Any]]


def first_picture(steps: int = 4, **apply: Any) -> Prompt:
    """The workflow with fewer steps, and other settings of its Apply node."""
    prompt: Prompt = json.loads((API / "first_picture.json").read_text(encoding="utf-8"))
    find(prompt, "KSampler")["inputs"]["steps"] = steps
    find(prompt, "CLDM_ApplyControlNet")["inputs"].update(apply)
    return prompt


def find(prompt: Prompt, class_type: str) -> dict[str, Any]:
    return prompt[node_id(prompt, class_type)]


def node_id(prompt: Prompt, class_type: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


def through_the_model_door(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    apply, sampler = find(changed, "CLDM_ApplyControlNet"), find(changed, "KSampler")["inputs"]
    positive, negative = apply["inputs"].pop("positive"), apply["inputs"].pop("negative")
    apply["class_type"] = "CLDM_PatchModel"
    apply["inputs"]["model"] = sampler["model"]
    apply_id = node_id(changed, "CLDM_PatchModel")
    sampler.update(model=[apply_id, 0], positive=positive, negative=negative)
    return changed


def without_control(prompt: Prompt) -> Prompt:
    changed = copy.deepcopy(prompt)
    apply = find(changed, "CLDM_ApplyControlNet")["inputs"]
    find(changed, "KSampler")["inputs"].update(
        positive=apply["positive"], negative=apply["negative"]
    )
    return changed


def sampled(result: Result, prompt: Prompt) -> list[tuple[str, int, int]]:
    """What the sampler told of its progress; an annotator tells of its own, unless it is cached."""
    return [told for told in result.progress if told[0] == node_id(prompt, "KSampler")]


def interrupted(client: HostClient, prompt: Prompt) -> Result:
    """A run that is stopped once it has done three steps."""
    stops = [HostClient(client.url)]

    def after_the_third(_: str, value: int, __: int) -> None:
        # Not "at": the newer host leaves out some messages. Not twice: it would stop the next run.
        if value >= 3 and stops:
            stops.pop().interrupt()

    return client.queue(prompt, on_progress=after_the_third)
