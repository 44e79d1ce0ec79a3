"""Run a Python script inside a host's modules, in a process of its own, and get its answer back."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .hosts import PACK, HostInstall, install_pack

RUNNER = Path(__file__).with_name("runner.py")


def run_in_host(
    install: HostInstall,
    script: str | Path,
    args: Mapping[str, Any] | None = None,
    *,
    folder: Path,
    pack: Path = PACK,
    timeout: float = 600,
) -> dict[str, Any]:
    """Run a script (a path, or code) with the host imported and the pack loaded.

    The script finds `args`, and `complaints`: what was logged or warned of while the pack loaded.
    `pack("nodes.apply")` gives a module of the pack. `report(key=value)` prints the answer, the
    JSON object on the script's last line. The pack is loaded by the host's own
    `nodes.load_custom_node`, on the CPU; `folder` holds the host's base folder.
    """
    base = folder / "base"
    where = install_pack(base / "custom_nodes", pack)
    if not isinstance(script, Path):
        code, script = script, folder / "script.py"
        script.write_text(code, encoding="utf-8")
    task = {"root": str(install.root), "base": str(base), "pack": str(where)}
    task |= {"script": str(script), "args": dict(args or {})}
    done = subprocess.run(
        [install.python, str(RUNNER), json.dumps(task)],
        env=install.environment(folder / "standins"),
        capture_output=True,
        check=False,
        text=True,
        timeout=timeout,
    )
    if done.returncode != 0:
        raise RuntimeError(f"in ComfyUI {install.version}:\n{done.stdout}\n{done.stderr}")
    return last_object(done.stdout)


def last_object(text: str) -> dict[str, Any]:
    """The JSON object on the last line of a text."""
    lines = text.splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    if answer is None:
        raise ValueError(f"the script's last line is no JSON object:\n{text}")
    return answer
