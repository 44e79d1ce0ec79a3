"""The texts that nodes show: in the results of every run, and in a box in the editor."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from .browser import NO_BROWSER, find_browser
from .client import HostClient
from .editor import Editor
from .server import HostServer

LOAD, INSPECT = "CLDM_LoadControlNet", "CLDM_InspectControlNet"
APPLY = "CLDM_ApplyControlNet"
FIRST = Path(__file__).resolve().parents[2] / "workflows" / "first_picture.json"
SHOWN_BY = "(id) => app.graph.getNodeById(id).cldmBox?.value ?? ''"
# Makes a subgraph of nodes, and forgets what they show.
GROUP = """(ids) => {
    const nodes = ids.map((id) => app.graph.getNodeById(id))
    const { node } = app.graph.convertToSubgraph(new Set(nodes))
    for (const inner of node.subgraph._nodes) delete inner.properties.cldm_text
    return true
}"""
SHOWN_INSIDE = """() => app.graph._nodes.find((n) => n.subgraph).subgraph._nodes
    .map((n) => n.properties.cldm_text ?? '')"""
SHOWN = "() => app.graph._nodes.map((n) => n.cldmBox?.value ?? '')"
BOXES = """() => app.graph._nodes.map((n) => {
    const box = n.cldmBox.element
    return box.readOnly && box.scrollHeight <= box.clientHeight
})"""

NODES_2 = "Comfy.VueNodes.Enabled"
FIRST_WITH_NODES_2 = (1, 41)
"""Since when new installations have them by default."""
# Of the texts that are drawn and can't be changed: whether all of it is seen.
DRAWN = """() => [...document.querySelectorAll('[data-node-id] textarea')]
    .filter((area) => area.readOnly)
    .map((area) => area.scrollHeight <= area.clientHeight)"""
# Left, top, right and bottom of each node with its title, by number and type.
PLACES = """() => Object.fromEntries(app.graph._nodes.map(({ id, type, pos, size }) =>
    [`${id} ${type}`, [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]]))"""


def loading(name: str = "embedded: canny") -> dict[str, Any]:
    chosen = {"control_net_name": name}
    return {
        "1": {"class_type": LOAD, "inputs": {**chosen, "pooling": "auto", "head_channels": 0}},
        "2": {"class_type": INSPECT, "inputs": chosen},
        "3": {
            "class_type": "CLDM_SaveControlNet",
            "inputs": {
                "control_net": ["1", 0],
                "name": "sub/shown",
                "number_type": "as loaded",
                "keys": "original",
            },
        },
    }


def test_texts_come_with_every_run(client: HostClient) -> None:
    for _ in range(2):  # the second time from what the host remembers
        result = client.queue(loading())
        assert result.status == "success", result.message()
        record = client.history(result.prompt_id)
        assert record["1"]["text"][0].startswith("embedded model ControlNet")
        assert "\nPooling: off, as the file says." in record["1"]["text"][0]
        assert record["1"]["choice"] == ["embedded: canny"]
        assert result.texts("2")[0].startswith("kind: ControlNet\n")
        assert result.texts("3")[0].startswith("Saved as sub/shown.safetensors\n")


def test_a_box_shows_the_text_and_clears(host: HostServer, tmp_path: Path) -> None:
    if find_browser() is None:
        pytest.skip(NO_BROWSER)
    with Editor(host.url, tmp_path) as editor:
        page = editor.page
        page.run(
            """(load, inspect) => {
                app.graph.clear()
                for (const [i, type] of [load, inspect].entries()) {
                    const node = LiteGraph.createNode(type)
                    app.graph.add(node)
                    node.pos = [400 * i, 0]
                }
                const save = LiteGraph.createNode('CLDM_SaveControlNet')
                app.graph.add(save)
                save.pos = [0, 400]
                app.graph._nodes[0].connect(0, save, 0)
                return true
            }""",
            *(LOAD, INSPECT),
        )
        editor.queue()
        page.wait_for(f"() => ({SHOWN})().every((text) => text)")
        texts = page.run(SHOWN)
        assert page.run(BOXES) == [True, True, True]
        graph = page.run("() => app.graph.serialize()")
        assert graph["nodes"][0]["widgets_values"] == ["embedded: canny", "auto", 0, "auto"]
        prompt = page.run("async () => (await app.graphToPrompt()).output")
        asked = {"control_net_name", "pooling", "head_channels", "precision"}
        assert set(prompt["1"]["inputs"]) == asked

        editor.load(graph)  # as after a reload
        assert page.run(SHOWN) == texts

        for node in graph["nodes"]:
            del node["properties"]["cldm_text"]
        editor.load(graph)  # as a file of somebody else, whose result the host knows already
        assert page.run(SHOWN) == ["", "", ""]
        editor.queue()
        page.wait_for(f"() => ({SHOWN})().every((text) => text)")

        page.run("() => { app.graph._nodes[0].widgets[1].callback('on'); return true }")
        assert page.run(SHOWN)[0] == ""
        assert page.run(SHOWN)[1] == texts[1]


def test_what_was_applied_is_shown_in_graphs_and_subgraphs(
    host: HostServer, tmp_path: Path
) -> None:
    if find_browser() is None:
        pytest.skip(NO_BROWSER)
    graph = json.loads(FIRST.read_text(encoding="utf-8"))
    by_type = {node["type"]: node for node in graph["nodes"]}
    sampler, apply, load = by_type["KSampler"], by_type[APPLY], by_type[LOAD]
    sampler["widgets_values"][2] = 2
    with Editor(host.url, tmp_path) as editor:
        page = editor.page
        editor.load(graph)
        editor.queue()
        page.wait_for(f"() => ({SHOWN_BY})({apply['id']}).includes('steps: on at 2 of 2')")

        page.run(GROUP, [load["id"], apply["id"]])  # where the node has another id for the host
        sampler_id = sampler["id"]
        page.run(f"() => {{ app.graph.getNodeById({sampler_id}).widgets[0].value = 99; return 1 }}")
        editor.queue()
        page.wait_for(f"() => ({SHOWN_INSIDE})().every((t) => t)")
        assert "steps: on at 2 of 2" in page.run(SHOWN_INSIDE)[1]


def test_nodes_2_show_whole_texts_side_by_side(host: HostServer, tmp_path: Path) -> None:
    if find_browser() is None:
        pytest.skip(NO_BROWSER)
    graph = json.loads(FIRST.read_text(encoding="utf-8"))
    next(n for n in graph["nodes"] if n["type"] == "KSampler")["widgets_values"][2] = 2
    with Editor(host.url, tmp_path) as editor:
        page = editor.page
        version = page.run("() => window.__COMFYUI_FRONTEND_VERSION__")
        if tuple(map(int, version.split(".")[:2])) < FIRST_WITH_NODES_2:
            pytest.skip(f"Nodes 2.0 is an experiment in the editor {version}")
        page.run("(name) => app.ui.settings.setSettingValueAsync(name, true)", NODES_2)
        try:
            editor.load(graph)
            editor.queue()
            page.wait_for(f"() => ({DRAWN})().length == 2")
            page.wait_for(f"() => ({DRAWN})().every((whole) => whole)", timeout=20)
            boxes = page.run(PLACES)
        finally:
            page.run("(name) => app.ui.settings.setSettingValueAsync(name, false)", NODES_2)
    for (a, (x0, y0, x1, y1)), (b, (u0, v0, u1, v1)) in combinations(boxes.items(), 2):
        assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0, (a, b)
