"""What `startup.py` starts with a host's interpreter: starts the host, but doesn't serve."""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402


def main(root: str, base: str) -> None:
    """Starts the host in `root` with the folders in `base`, and prints what it took."""
    sys.path[0] = root
    sys.argv = ["main.py", "--cpu", "--quick-test-for-ci", "--base-directory", base]
    host: Any = importlib.import_module("main")
    nodes: Any = importlib.import_module("nodes")
    loading = [0.0, 0.0]
    load = nodes.init_external_custom_nodes

    async def timed() -> None:
        before = time.perf_counter(), time.process_time()
        await load()
        loading[:] = time.perf_counter() - before[0], time.process_time() - before[1]

    nodes.init_external_custom_nodes = timed
    try:
        host.start_comfyui()
    except SystemExit:
        whole = time.perf_counter() - BEGUN, time.process_time()
        answer = {"whole": whole, "loading": loading, "modules": sorted(sys.modules)}
        print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
