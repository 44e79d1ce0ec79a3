"""What this pack adds to the start of ComfyUI: seconds, modules, and packages to install.

Starts each host with and without the pack in turn, prints a table and writes results/startup.json;
see README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from apply import (
    RESULTS,
    HostInstall,
    add_host_flags,
    commit,
    hosts_of,
    install_pack,
    spread,
)

INSIDE = Path(__file__).with_name("startup_host.py")
WITH, WITHOUT = "with", "without"
LATE = ("accelerate", "cv2", "diffusers", "huggingface_hub", "onnxruntime", "transformers")
"""Packages that the pack must not import before they are used."""


def started(install: HostInstall, folder: Path, pack: Path | None) -> dict[str, Any]:
    """One start of the host up to the moment when it would serve, in a process of its own."""
    base = folder / (WITH if pack else WITHOUT)
    custom_nodes = base / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    if pack:
        install_pack(custom_nodes, pack)
    env = install.environment(folder / "standins")
    # Compiled files are kept, as they are for users.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [install.python, str(INSIDE), str(install.root), str(base)],
        env=env,
        capture_output=True,
        check=False,
        text=True,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"whole"')]
    if not answers:
        raise SystemExit(f"ComfyUI {install.version} ended with {done.returncode}:\n{done.stderr}")
    return dict(json.loads(answers[-1]))


def measure(install: HostInstall, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one host."""
    packs = {WITHOUT: None, WITH: args.pack.resolve()}
    for pack in packs.values():
        started(install, folder, pack)  # writes what Python and the host keep of a first start
    taken: dict[str, list[dict[str, Any]]] = {WITH: [], WITHOUT: []}
    for number in range(args.pairs):
        # Each round in another order, so that disturbances fall on both.
        for name in sorted(packs, reverse=number % 2 == 0):
            taken[name].append(started(install, folder, packs[name]))
            whole, loading = taken[name][-1]["whole"], taken[name][-1]["loading"]
            print(
                f"{install.version} {number} {name:8}{whole[0]:8.3f} s, of which loading "
                f"{loading[0]:.3f} s",
                flush=True,
            )
    return summary(taken)


def summary(taken: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Spreads of the loading and of what the whole start takes longer, and the modules."""
    pairs = list(zip(taken[WITH], taken[WITHOUT], strict=True))
    found: dict[str, Any] = {}
    for number, clock in enumerate(("seconds", "cpu")):
        found[clock] = {
            "loading": spread([one["loading"][number] for one in taken[WITH]], 4),
            "whole with": spread([one["whole"][number] for one in taken[WITH]], 3),
            "whole without": spread([one["whole"][number] for one in taken[WITHOUT]], 3),
            "added": spread([a["whole"][number] - b["whole"][number] for a, b in pairs], 3),
        }
    modules = [set(side[-1]["modules"]) for side in (taken[WITH], taken[WITHOUT])]
    new = modules[0] - modules[1]
    # The host names the pack's modules by the path of its folder.
    foreign = sorted(name for name in new if "/" not in name)
    found["modules"] = {"pack": len(new) - len(foreign), "others": foreign}
    found["too_early"] = [name for name in LATE if name in new]
    return found


def requirements(install: HostInstall, pack: Path) -> dict[str, Any]:
    """The packages that the pack's requirements.txt adds to the host's."""
    own, shipped = (names_in(folder / "requirements.txt") for folder in (pack, install.root))
    return {"asks_for": sorted(own), "not_in_host": sorted(own - shipped)}


def names_in(file: Path) -> set[str]:
    """The packages that a requirements.txt names."""
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    names = set()
    for line in filter(None, lines):
        end = next((n for n, letter in enumerate(line) if letter in "<>=~![; "), len(line))
        names.add(line[:end].lower().replace("_", "-"))
    return names


def table(found: dict[str, Any]) -> str:
    lines = []
    for clock in ("seconds", "cpu"):
        for what, one in found[clock].items():
            lines.append(
                f"{clock:8} {what:14} {one['median']:8.3f} "
                f"({one['lower']:.3f}-{one['upper']:.3f}, {one['min']:.3f}-{one['max']:.3f})"
            )
    lines.append(f"modules: {found['modules']}")
    lines.append(f"too early: {found['too_early'] or 'none'}")
    lines.append(f"requirements: {found['requirements']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_host_flags(parser)
    parser.add_argument("--pairs", type=int, default=10, help="starts with and without the pack")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    args = parser.parse_args()
    hosts = hosts_of(args)
    result: dict[str, Any] = {"commit": commit(args.pack), "pairs": args.pairs, "hosts": {}}
    for install in hosts:
        with tempfile.TemporaryDirectory() as name:
            found = measure(install, args, Path(name))
        found["requirements"] = requirements(install, args.pack)
        result["hosts"][install.version] = found
        print(f"\nComfyUI {install.version}\n{table(found)}\n", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
