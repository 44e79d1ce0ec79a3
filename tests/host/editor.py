"""The host's graph editor in a browser: load a workflow, run it, show all of it."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .browser import Browser
from .client import HostClient

# No first-run template browser, no dialogs over missing models, no panels over the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.Queue.QPOV2": False,
}
READY = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler)"
HIDE = """() => {
    const style = document.createElement('style')
    style.textContent = `.p-toast, .p-dialog-mask, .p-overlay-mask, .comfy-modal, .p-tooltip,
        .litegraph .node-tooltip, #survey, .release-notification-toast, .whats-new-popup
        { display: none !important }`
    document.head.append(style)
}"""
FIT = """(margin) => {
    const nodes = app.graph._nodes, groups = app.graph._groups ?? [], canvas = app.canvas
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const boxes = [
        ...nodes.map((n) => [n.pos[0], n.pos[1] - title, n.size[0], n.size[1] + title]),
        ...groups.map((g) => [g._pos[0], g._pos[1], g._size[0], g._size[1]]),
    ]
    const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]))
    const right = Math.max(...boxes.map((b) => b[0] + b[2]))
    const bottom = Math.max(...boxes.map((b) => b[1] + b[3]))
    const frame = canvas.canvas.getBoundingClientRect()
    const width = innerWidth - margin.left - margin.right
    const height = innerHeight - margin.top - margin.bottom
    const scale = Math.min(width / (right - left), height / (bottom - top), 1.5)
    canvas.ds.scale = scale
    canvas.ds.offset[0] = (margin.left - frame.left + width / 2) / scale - (left + right) / 2
    canvas.ds.offset[1] = (margin.top - frame.top + height / 2) / scale - (top + bottom) / 2
    canvas.deselectAll?.()
    canvas.setDirty(true, true)
    canvas.draw(true, true)
    return boxes.length
}"""
SHOWN = """(ids) => ids.map((id) => app.graph.getNodeById(id)).every((node) => !node ||
    (node.imgs?.length && [...node.imgs].every((i) => i.complete && i.naturalWidth)))"""
QUIET = "() => !/Job (queued|added|completed)/.test(document.body.innerText)"
MARGIN = {"left": 90, "right": 30, "top": 130, "bottom": 80}  # what the editor's own bars cover


class Editor:
    """`with Editor(url, folder) as editor:` the editor of a running host, open and ready."""

    def __init__(self, url: str, folder: Path, size: tuple[int, int] = (1600, 900)) -> None:
        self.client = HostClient(url)
        self.page = Browser(folder, size)

    def __enter__(self) -> "Editor":
        self.client.post("/settings", SETTINGS)
        self.page.__enter__()
        try:
            self.page.open(self.client.url)
            self.page.wait_for(READY)
            self.page.run(HIDE)
        except BaseException:
            self.page.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.page.__exit__(kind, error, trace)
        self.client.close()

    def load(self, workflow: Mapping[str, Any], name: str = "workflow") -> list[str]:
        """Show a workflow of the editor's format; gives the node types that the host lacks."""
        self.page.run(
            "(graph, name) => app.loadGraphData(graph, true, true, name).then(() => true)",
            *(workflow, name),
        )
        return self.page.run(
            """() => app.graph._nodes.map((n) => n.type)
                .filter((t) => !(t in LiteGraph.registered_node_types))"""
        )

    def queue(self, timeout: float = 600) -> dict[str, Any]:
        """Press Run and wait for the end; gives the host's history entry, raises on an error."""
        before = set(self.client.get("/history"))
        self.page.run("() => app.queuePrompt(0, 1).then(() => true)")
        deadline = time.monotonic() + timeout
        while not (new := set(history := self.client.get("/history")) - before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the workflow did not end in {timeout} s")
            time.sleep(0.5)
        entry = history[new.pop()]
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(f"the workflow failed: {entry['status']['messages'][-1]}")
        self.fit()  # a node fetches its pictures when it is drawn
        pictures = [int(k) for k, v in entry["outputs"].items() if "images" in v and k.isdigit()]
        self.page.wait_for(SHOWN, pictures, timeout=timeout)
        self.page.wait_for(QUIET, timeout=timeout)
        return entry

    def fit(self) -> None:
        """Show all of the graph, as large as the window allows."""
        self.page.run(FIT, MARGIN)

    def capture(self, file: Path) -> Path:
        """Fit the whole graph into the window and save a PNG."""
        self.fit()
        time.sleep(1)  # widgets that are HTML, such as text boxes, follow a frame later
        self.page.wait_for(QUIET)  # a busy machine tells of a job's end late
        return self.page.capture(file)
