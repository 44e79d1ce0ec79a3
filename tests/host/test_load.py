"""The pack in a real host: it loads without a word of complaint, and every node explains itself."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from .hosts import PACK_NAME
from .server import HostServer

MODULE = f"custom_nodes.{PACK_NAME}"


@pytest.fixture(scope="module")
def nodes(host: HostServer) -> dict[str, dict[str, Any]]:
    """The pack's nodes as the host describes them."""
    found = host.client.object_info()
    return {k: v for k, v in found.items() if v["python_module"] == MODULE}


def test_the_log_says_that_the_pack_was_loaded(host: HostServer) -> None:
    lines = [line for line in host.log().splitlines() if line.endswith(f"/{PACK_NAME}")]
    assert any(re.search(r"\d seconds: ", line) for line in lines), host.tail()
    assert [line for line in lines if "FAILED" in line] == []


def test_loading_warns_of_nothing(in_host: Callable[..., dict[str, Any]]) -> None:
    assert in_host("report(complaints=complaints)")["complaints"] == []


def test_the_pack_brings_nodes(nodes: dict[str, dict[str, Any]]) -> None:
    assert nodes
    assert [name for name in nodes if not name.startswith("CLDM_")] == []


def test_every_node_has_a_name_a_place_and_a_description(nodes: dict[str, dict[str, Any]]) -> None:
    for name, node in nodes.items():
        assert node["display_name"] != name, f"{name} shows its id"
        assert node["category"].startswith("ControlNet-CLDM"), name
        assert len(node["description"]) > 20, f"{name} has no description"


def test_every_input_has_a_tooltip(nodes: dict[str, dict[str, Any]]) -> None:
    silent = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for group in ("required", "optional")
        for key, spec in node["input"].get(group, {}).items()
        if not (len(spec) > 1 and spec[1].get("tooltip"))
    ]
    assert silent == []


def test_every_output_has_a_name_and_a_tooltip(nodes: dict[str, dict[str, Any]]) -> None:
    for name, node in nodes.items():
        tips = node.get("output_tooltips") or []
        assert len(tips) == len(node["output"]), f"{name}: an output has no tooltip"
        assert all(tips), f"{name}: an output has no tooltip"
        assert all(node["output_name"]), f"{name}: an output has no name"
