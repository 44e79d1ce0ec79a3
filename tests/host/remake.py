"""Remakes what running the workflows gives: thumbnails, pictures of the docs, object_info.json.

python tests/host/remake.py [--host 0.3.64] [--only thumbnails picture nodes settings] [--flag=...]
                            [--workflow train_a_controlnet]

COMFYUI_PATH names the host, as for the tests; the oldest is taken unless --host says another.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from host.client import HostClient
from host.editor import Editor
from host.hosts import NO_HOST, find_hosts
from host.server import HostServer
from host.settings_sheet import write_settings_sheet

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
OBJECT_INFO = ROOT / "tests" / "data" / "object_info.json"
PICTURE = ROOT / "docs" / "first_picture.png"
SETTINGS = ROOT / "docs" / "applying.jpg"
SIDE = 384  # pixels; a thumbnail is the hints and the pictures, side by side
MOST, SMALL = 4, 256  # so many in one row; of more there are two rows, with sides this long
OF_BATCH = 192  # where nodes show batches, each of them has a row
QUALITY = 85
NODES_2 = {"Comfy.VueNodes.Enabled": True}  # as new users see the editor, and larger
WIDE = 1.7  # width to height from which on pictures are put one above the other
NOTE = "MarkdownNote"  # the editor's own; the host doesn't know it
INSPECTOR = "CLDM_ControlInspector"  # whose pictures are thumbnail enough
PLOT = "CLDM_LossPlot"  # as are its plot and its samples
# What tests/test_workflows.py and comfy-lint read of a node's description.
FACTS = (
    *("input", "input_order", "output", "output_is_list", "output_name", "name", "display_name"),
    *("category", "output_node"),
)


def main() -> None:
    """Read the command line, start a host, and remake what is asked for."""
    told = parse()
    found = [host for host in find_hosts() if told.host in (None, host.version)]
    if not found:
        raise SystemExit(NO_HOST)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(HostServer(found[0], folder, flags=told.flag))
        if "nodes" in told.only:
            describe_nodes(host.client)
        if "thumbnails" in told.only:
            for path in sorted((WORKFLOWS / "api").glob("*.json")):
                if told.workflow in (None, path.stem):
                    write_thumbnail(host.client, path)
        if "settings" in told.only:
            prompt = read(WORKFLOWS / "api" / f"{PICTURE.stem}.json")
            write_settings_sheet(host.client, prompt, SETTINGS)
        if "picture" in told.only:
            host.client.post("/settings", NODES_2)
            editor = stack.enter_context(Editor(host.url, folder))
            editor.load(read(WORKFLOWS / f"{PICTURE.stem}.json"), PICTURE.stem)
            editor.queue()
            editor.capture(PICTURE)


def parse() -> argparse.Namespace:
    """The command line."""
    everything = ("nodes", "thumbnails", "settings", "picture")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", help="which of the hosts found, by its version; else the oldest")
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--workflow", help="the thumbnail of this one alone")
    parser.add_argument("--flag", action="append", default=[], help="for the host's command line")
    return parser.parse_args()


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def describe_nodes(client: HostClient) -> None:
    """Write what the host says of our nodes and of those that the workflows use."""
    described = client.object_info()
    used = {node["type"] for path in WORKFLOWS.glob("*.json") for node in read(path)["nodes"]}
    ours = {name for name in described if name.startswith("CLDM_")}
    names = sorted((used | ours) - {NOTE})
    kept = {name: {fact: described[name][fact] for fact in FACTS} for name in names}
    OBJECT_INFO.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def write_thumbnail(client: HostClient, path: Path) -> None:
    """Run an API prompt and put its hints and its pictures side by side."""
    prompt = read(path)
    result = client.queue(prompt)
    if result.status != "success":
        raise SystemExit(f"{path.name}: {result.message()}")
    shown: dict[str, list[list[np.ndarray]]] = {}
    for node in sorted(result.outputs, key=int):
        kind = prompt[node]["class_type"]
        source = prompt[node]["inputs"].get("images", [node])[0]
        kind = PLOT if prompt[source]["class_type"] == PLOT else kind
        shown[kind] = [*shown.get(kind, []), client.images(result, node)]
    alone = shown.get(INSPECTOR) or shown.get(PLOT)
    of_nodes = alone or [*shown["PreviewImage"], *shown["SaveImage"]]
    thumbnail = WORKFLOWS / f"{path.stem}.jpg"
    if all_batches(of_nodes):
        sheet = batches(of_nodes)
    else:
        sheet = joined([picture for pictures in of_nodes for picture in pictures])
    cv2.imwrite(str(thumbnail), sheet[..., 2::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    sys.stdout.write(f"{thumbnail.name}: {thumbnail.stat().st_size} bytes\n")


def all_batches(of_nodes: list[list[np.ndarray]]) -> bool:
    """Whether several nodes show as many pictures each, and more than one."""
    sizes = {len(pictures) for pictures in of_nodes}
    return len(of_nodes) > 1 and len(sizes) == 1 and max(sizes) > 1


def batches(of_nodes: list[list[np.ndarray]]) -> np.ndarray:
    """A row for each node, so that pictures stand below their hints."""
    return np.vstack([np.hstack(scaled(pictures, OF_BATCH)) for pictures in of_nodes])


def scaled(pictures: list[np.ndarray], side: int) -> list[np.ndarray]:
    """Pictures of this height, as RGB."""
    cells = []
    for picture in pictures:
        scale = side / picture.shape[0]
        way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        cells.append(cv2.resize(picture[..., :3], None, fx=scale, fy=scale, interpolation=way))
    return cells


def joined(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures in a row; in a column where they are wide, and in two rows where they are many."""
    height, width = pictures[0].shape[:2]
    wide = width >= WIDE * height
    many = len(pictures) > MOST
    cells = scaled(pictures, SMALL if many else SIDE)
    if not many:
        return np.vstack(cells) if wide else np.hstack(cells)
    columns = -(-len(cells) // 2)
    cells += [np.full_like(cells[0], 255)] * (2 * columns - len(cells))
    return np.vstack([np.hstack(cells[:columns]), np.hstack(cells[columns:])])


if __name__ == "__main__":
    main()
