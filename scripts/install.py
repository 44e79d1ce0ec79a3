"""Bring a virtual environment to what a lock file says; `make` calls this.

    python scripts/install.py .venv tests/requirements/demo.txt [--cuda]

PyPI's torch for Linux comes with gigabytes of CUDA libraries. So the CPU build is tried first,
unless --cuda asks for the other, and PyPI's build is taken where the CPU build can't be reached.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """Make the environment if there is none, and install what the lock file lists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("environment", type=Path, help="folder of the virtual environment")
    parser.add_argument("lock", type=Path, help="requirements file with a == for each package")
    parser.add_argument("--cuda", action="store_true", help="take PyTorch's CUDA build")
    options = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        print(f"Python {oldest} or newer is needed, and this is {sys.version.split()[0]}.")
        print(f"Name another one: make PYTHON=python{oldest}")
        return 2

    print(f"Installing {options.lock} into {options.environment}; this takes minutes.", flush=True)
    if not (options.environment / "bin" / "pip").exists():
        command = [sys.executable, "-m", "venv", str(options.environment)]
        if code := subprocess.run(command).returncode:
            return code
    if sys.platform == "linux" and not options.cuda:
        install_cpu_torch(options.environment, options.lock.with_name("demo.txt"))
    return pip(options.environment, "--requirement", str(options.lock))


def install_cpu_torch(environment: Path, lock: Path) -> None:
    """Install torch's CPU build in the version of `lock`, or leave it to the lock file."""
    pin = re.search(r"^torch==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        raise SystemExit(f"{lock} does not pin torch.")
    torch = f"torch=={pin[1]}+cpu"
    # A short wait, since a machine may reach PyPI or have the wheel on disk, but not this index.
    where = ("--extra-index-url", CPU_BUILDS, "--timeout", "15", "--retries", "1")
    if pip(environment, "--no-deps", *where, torch) != 0:
        print(f"{torch} can't be reached; taking PyPI's build, which is large.", flush=True)


def pip(environment: Path, *arguments: str) -> int:
    """Run pip install in the environment, and give its exit code."""
    python = str(environment / "bin" / "python")
    quietly = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    return subprocess.run([python, "-m", "pip", "install", *quietly, *arguments]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
