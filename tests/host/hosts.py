"""Find the ComfyUI checkouts that the `host` tests run against, and what they need to start.

COMFYUI_PATH    one or more checkouts, separated by os.pathsep (default: those among ~/hosts/*)
COMFYUI_PYTHON  the interpreter that runs them (default: the checkout's own .venv or venv, the venv
                beside it, or the interpreter of the tests)
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "ComfyUI-CLDM"
NO_HOST = "no ComfyUI found: set COMFYUI_PATH to one or more checkouts (and COMFYUI_PYTHON)"

# Hosts and transformers import it at start; what the tests run never calls it.
STANDINS = {"torchvision/__init__.py": Path(__file__).with_name("standin.py")}


@dataclass(frozen=True)
class HostInstall:
    """One ComfyUI checkout and the interpreter that runs it."""

    root: Path
    python: Path

    @property
    def version(self) -> str:
        """The version that the checkout says it is, such as 0.3.64."""
        text = _read(self.root / "comfyui_version.py") or _read(self.root / "pyproject.toml")
        found = re.search(r'version__? = "([^"]+)"', text)
        return found.group(1) if found else self.root.name

    def environment(self, standins: Path) -> dict[str, str]:
        """The host process's environment: offline, and with stand-ins for what it lacks."""
        env = {k: v for k, v in os.environ.items() if k not in {"PYTHONHOME", "VIRTUAL_ENV"}}
        env |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
        env["PYTHONPATH"] = "" if self.has("torchvision") else str(write_standins(standins))
        return env

    def has(self, module: str) -> bool:
        """Whether its interpreter has a package."""
        probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        done = subprocess.run([self.python, "-I", "-c", probe], check=False, timeout=120)
        return done.returncode == 0


def find_hosts() -> list[HostInstall]:
    """The checkouts named in COMFYUI_PATH, else those below ~/hosts; none is an empty list."""
    named = os.environ.get("COMFYUI_PATH")
    if named is not None:
        roots = [Path(p).expanduser() for p in named.split(os.pathsep) if p]
        for root in roots:
            if not is_host(root):
                raise FileNotFoundError(f"COMFYUI_PATH: {root} has no main.py and comfy/")
    else:
        roots = [p for p in sorted((Path.home() / "hosts").glob("*")) if is_host(p)]
    return sorted((HostInstall(root.resolve(), python_of(root)) for root in roots), key=number)


def number(install: HostInstall) -> list[int]:
    """A version to sort by: 0.3.64 comes before 0.18.1."""
    return [int(part) for part in re.findall(r"\d+", install.version)]


def is_host(root: Path) -> bool:
    """Whether this folder is a ComfyUI checkout."""
    return (root / "main.py").is_file() and (root / "comfy").is_dir()


def python_of(root: Path) -> Path:
    """The interpreter for a checkout: told, its own, its neighbour's, or ours."""
    if told := os.environ.get("COMFYUI_PYTHON"):
        return Path(told).expanduser()
    for venv in (root / ".venv", root / "venv", root.parent / "venv"):
        for python in (venv / "bin" / "python", venv / "Scripts" / "python.exe"):
            if python.is_file():
                return python
    return Path(sys.executable)


def write_standins(folder: Path) -> Path:
    """Write packages that do nothing under names that a host imports but never uses here."""
    for name, source in STANDINS.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read_bytes())
    return folder


def install_pack(custom_nodes: Path, pack: Path = PACK, name: str = PACK_NAME) -> Path:
    """Put the pack where a host looks for it: a link to this checkout."""
    custom_nodes.mkdir(parents=True, exist_ok=True)
    link = custom_nodes / name
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    return link


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
