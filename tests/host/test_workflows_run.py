"""Every workflow of the pack loads and runs in a real host."""

import json
from pathlib import Path
from typing import Any

import pytest

from .client import HostClient
from .server import HostServer

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
SHOWS = ("PreviewImage", "SaveImage", "CLDM_ControlInspector")


def size_of(prompt: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the picture that a workflow makes."""
    (latent,) = (node for node in prompt.values() if node["class_type"] == "EmptyLatentImage")
    return latent["inputs"]["height"], latent["inputs"]["width"]


@pytest.mark.parametrize("path", sorted(API.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_runs(host: HostServer, client: HostClient, path: Path) -> None:
    start = len(host.log())
    prompt = json.loads(path.read_text(encoding="utf-8"))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
        if "rank" in node["inputs"]:
            node["inputs"]["rank"] = 4
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
