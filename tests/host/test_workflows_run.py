"""Every workflow of the pack loads and runs in a real host."""

import json
from pathlib import Path

import pytest

from .client import HostClient

API = Path(__file__).resolve().parents[2] / "workflows" / "api"


@pytest.mark.parametrize("path", sorted(API.glob("*.json")), ids=lambda path: path.stem)
def test_workflow_runs(client: HostClient, path: Path) -> None:
    prompt = json.loads(path.read_text(encoding="utf-8"))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
        if "rank" in node["inputs"]:
            node["inputs"]["rank"] = 4
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    assert [picture.shape[:2] for picture in client.images(result)] == [(128, 128)] * 2
