"""Every workflow of the pack loads and runs in a real host."""

import json
from pathlib import Path
from typing import Any

import pytest

from .client import HostClient
from .hosts import HostInstall
from .server import HostServer

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
SHOWS = ("PreviewImage", "SaveImage", "CLDM_ControlInspector")
TRAIN = "CLDM_TrainControlNet"
TO_TRAIN = ("accelerate", "matplotlib")
SMALL = {
    "steps": 2,
    "rank": 4,
    "circles": 32,
    "evaluate_every": 2,
    "more": "held_out: 2\nsample_steps: 2",
}
"""Inputs by their names, for a run that takes seconds."""


def size_of(prompt: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the picture that a workflow makes."""
    (latent,) = (node for node in prompt.values() if node["class_type"] == "EmptyLatentImage")
    return latent["inputs"]["height"], latent["inputs"]["width"]


@pytest.mark.parametrize("path", sorted(API.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_runs(
    host: HostServer, client: HostClient, path: Path, install: HostInstall
) -> None:
    start = len(host.log())
    prompt = json.loads(path.read_text(encoding="utf-8"))
    if TRAIN in {node["class_type"] for node in prompt.values()}:
        missing = [name for name in TO_TRAIN if not install.has(name)]
        if missing:
            pytest.skip(f"this host's Python lacks {', '.join(missing)}, needed to train and plot")
    for node in prompt.values():
        small = {name: value for name, value in SMALL.items() if name in node["inputs"]}
        node["inputs"].update(small)
        if node["class_type"] == TRAIN:
            node["inputs"]["batch_size"] = 2
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    for number, node in prompt.items():
        if node["class_type"] not in SHOWS:
            continue
        pictures = client.images(result, number)
        assert pictures
        for picture in pictures:
            assert picture.std() > 1  # something can be seen
            if node["class_type"] == "SaveImage":
                assert picture.shape[:2] == size_of(prompt)
    assert result.progress[-1][1:] == (2, 2)
    for word in ("ERROR", "WARNING", "Traceback"):
        assert word not in host.log(start)
