"""Importing the pack, or a room of it, loads nothing slow and changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = {"comfy", "comfy_api", "folder_paths"}
SLOW = {"accelerate", "cv2", "diffusers", "matplotlib", "transformers"}
PROBE = """
import importlib, json, logging, os, sys
before = dict(os.environ), list(logging.root.handlers), sys.path[:]
importlib.import_module(sys.argv[1])
assert (dict(os.environ), logging.root.handlers, sys.path) == before
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imports(module: str, folder: Path) -> set[str]:
    """The top-level packages that `import module` loads in a new process started in `folder`."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, module], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return set(json.loads(run.stdout))


def test_core_stands_alone():
    loaded = imports("cldm_core", ROOT)
    assert not loaded & (HOST | SLOW | {"annotators", "nodes"})


def test_annotators_stand_alone():
    loaded = imports("annotators", ROOT)
    assert not loaded & (HOST | SLOW | {"cldm_core", "nodes", "torch"})


def test_pack_imports_without_the_host():
    loaded = imports(ROOT.name, ROOT.parent)
    assert not loaded & (HOST | SLOW | {"numpy", "torch"})


@pytest.mark.parametrize("module", ["annotators", "cldm_core"])
def test_import_writes_no_file(module, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())
