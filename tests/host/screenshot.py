"""A picture of a workflow in the real graph editor.

python tests/host/screenshot.py workflows/first_picture.json out.png --run
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host.editor import Editor
from host.hosts import NO_HOST, find_hosts, number
from host.server import HostServer


def main() -> None:
    """Read the command line, start a host unless one is named, and take the picture."""
    told = parse()
    workflow = json.loads(told.workflow.read_text(encoding="utf-8"))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = told.url or stack.enter_context(start_host(told.host, folder, told.input)).url
        editor = stack.enter_context(Editor(url, folder, told.size))
        if missing := editor.load(workflow, told.workflow.stem):
            raise SystemExit(f"this host lacks the nodes {sorted(set(missing))}")
        if told.run:
            editor.queue()
        editor.capture(told.out)
    sys.stdout.write(f"{told.out}\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, help="a workflow of the editor's format")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--run", action="store_true", help="run the workflow first")
    parser.add_argument("--url", help="a running host; without it one is started")
    parser.add_argument("--host", help="which of the hosts found, by its version; else the newest")
    parser.add_argument("--input", type=Path, action="append", default=[], help="input picture")
    parser.add_argument("--size", type=size, default=(1600, 900), help="such as 1600x900")
    return parser.parse_args()


def size(text: str) -> tuple[int, int]:
    """1600x900 as numbers."""
    width, height = text.split("x")
    return int(width), int(height)


def start_host(version: str | None, folder: Path, inputs: list[Path]) -> HostServer:
    """A host to start, with the pictures that the workflow loads in its input folder."""
    found = [h for h in find_hosts() if version in (None, h.version)]
    if not found:
        raise SystemExit(NO_HOST)
    server = HostServer(max(found, key=number), folder)
    for file in inputs:
        (server.base / "input" / file.name).write_bytes(file.read_bytes())
    return server


if __name__ == "__main__":
    main()
