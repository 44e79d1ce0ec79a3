"""The workflows hold against what a real host said about its nodes and ours (tests/data)."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from controlnet_pack.annotators import ANNOTATORS, Annotator

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
OBJECT_INFO = ROOT / "tests" / "data" / "object_info.json"
NODES: dict[str, dict[str, Any]] = json.loads(OBJECT_INFO.read_text(encoding="utf-8"))
# What an input is drawn as: a widget for these types and for lists of choices, else a socket.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
MUTED = 2  # a node's mode in the editor: it is shown and does not run
NOTE = "MarkdownNote"  # the editor's own; the host doesn't know it
TITLE = 30  # pixels that a node's title takes above it
# Union ControlNets, of which the embedded model has none, and weights that find people.
NEED_A_DOWNLOAD = {"CLDM_SetControlType", "CLDM_AddUnionHint", "CLDM_DetectPose"}


def node_of(annotator: Annotator) -> str:
    """The node that is made from an annotator's record."""
    return "CLDM_" + "".join(word.capitalize() for word in annotator.name.split("_"))


OF_ANNOTATORS = {node_of(annotator) for annotator in ANNOTATORS.values()}


def inputs_of(node: dict[str, Any]) -> dict[str, Any]:
    declared = node["input"]
    return {**declared.get("required", {}), **declared.get("optional", {})}


def widgets_of(node: dict[str, Any]) -> list[str]:
    """Names of a node's widgets in the editor's order.

    With the one that the editor adds to seeds.
    """
    names = []
    for name, (kind, *options) in inputs_of(node).items():
        told = options[0] if options else {}
        if (isinstance(kind, list) or kind in WIDGET_TYPES) and not told.get("forceInput"):
            names.append(name)
            if told.get("control_after_generate"):
                names.append("control_after_generate")
    return names


def editor(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(path: Path) -> list[dict[str, Any]]:
    """The nodes of the host, without notes."""
    return [node for node in editor(path)["nodes"] if node["type"] != NOTE]


def prompt(path: Path) -> dict[str, Any]:
    return editor(path.parent / "api" / path.name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_exist_with_these_sockets_and_widgets(path: Path) -> None:
    for node in nodes_of(path):
        declared = NODES[node["type"]]
        widgets = widgets_of(declared)
        sockets = [name for name in inputs_of(declared) if name not in widgets]
        entries = node["inputs"]
        assert [e["name"] for e in entries if "widget" not in e] == sockets, node["type"]
        wired = [e for e in entries if "widget" in e]
        assert all(e["name"] == e["widget"]["name"] and e["name"] in widgets for e in wired)
        assert all(e["link"] is not None for e in wired)
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        assert [entry["name"] for entry in node["outputs"]] == declared["output_name"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_api_prompt_is_the_same_graph(path: Path) -> None:
    graph, calls = editor(path), prompt(path)
    sources = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    running = [node for node in nodes_of(path) if node["mode"] != MUTED]
    assert {str(node["id"]) for node in running} == set(calls)
    for node in running:
        call = calls[str(node["id"])]
        wired = [entry for entry in node["inputs"] if entry["link"] is not None]
        wires = {entry["name"]: sources[entry["link"]] for entry in wired}
        names = widgets_of(NODES[node["type"]])
        values = dict(zip(names, node["widgets_values"], strict=True))
        values.pop("control_after_generate", None)
        assert call["class_type"] == node["type"]
        assert call["inputs"] == {**values, **wires}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_node_needs_is_wired(path: Path) -> None:
    for node in nodes_of(path):
        optional = NODES[node["type"]]["input"].get("optional", {})
        free = [entry["name"] for entry in node["inputs"] if entry["link"] is None]
        assert set(free) <= set(optional), node["type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_text_of_a_run_is_saved(path: Path) -> None:
    assert "cldm_text" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_agree_at_both_ends(path: Path) -> None:
    graph = editor(path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    for number, source, output, target, slot, kind in graph["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        entry = nodes[target]["inputs"][slot]
        assert (entry["type"], entry["link"]) == (kind, number)


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_node_lies_on_another(path: Path) -> None:
    for a, b in combinations(editor(path)["nodes"], 2):
        (left, top, right, bottom), (x0, y0, x1, y1) = box(a), box(b)
        apart = right <= x0 or x1 <= left or bottom <= y0 or y1 <= top
        assert apart, (a["type"], b["type"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_node_lies_in_a_group(path: Path) -> None:
    groups = [
        (x, y, x + width, y + height)
        for x, y, width, height in (group["bounding"] for group in editor(path)["groups"])
    ]
    for node in editor(path)["nodes"]:
        left, top, right, bottom = box(node)
        assert any(
            x0 <= left and y0 <= top and right <= x1 and bottom <= y1 for x0, y0, x1, y1 in groups
        ), node["type"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_comfy_lint_finds_nothing(path: Path) -> None:
    command = [Path(sys.executable).parent / "comfy-lint", "--schema-cache", OBJECT_INFO]
    done = subprocess.run(
        [*command, path.parent / "api" / path.name], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_thumbnail_stands_beside(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg").read_bytes()
    assert thumbnail[:2] == b"\xff\xd8"
    assert len(thumbnail) < 60_000


def test_every_node_of_ours_is_shown_by_a_workflow() -> None:
    ours = {name for name in NODES if name.startswith("CLDM_")}
    used = {node["type"] for path in WORKFLOWS for node in editor(path)["nodes"]}
    assert ours
    # CLDM_Annotate stands for those that are made from records.
    assert ours - NEED_A_DOWNLOAD - OF_ANNOTATORS <= used


@pytest.mark.parametrize("annotator", ANNOTATORS.values(), ids=lambda one: one.name)
def test_the_node_of_an_annotator_is_as_its_record(annotator: Annotator) -> None:
    # Where this fails: python tests/host/remake.py --only nodes
    declared = NODES[node_of(annotator)]
    taken = ["image", *(["mask"] if annotator.needs_mask else []), *annotator.settings]
    assert [*inputs_of(declared)] == taken
    for name, setting in annotator.settings.items():
        assert inputs_of(declared)[name][1]["default"] == setting.default
    assert list(NODES["CLDM_Annotate"]["input"]["required"]["annotator"][1]["options"]) == [
        *ANNOTATORS
    ]


def test_the_readme_names_every_node_and_workflow() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, node in NODES.items():
        if name.startswith("CLDM_"):
            assert f"| {node['display_name']} |" in readme
    for path in WORKFLOWS:
        assert f"(workflows/{path.name})" in readme
