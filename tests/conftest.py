"""Loads the pack as the host does, under a name of its own, and seeds every test."""

import random
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "controlnet_pack"


def _load_pack() -> None:
    spec = spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules[PACK] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])


_load_pack()


@pytest.hookimpl(tryfirst=True)  # before the plugin looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes (pytest-xdist) one has the tests of a file, or of a host's version."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        install = params.get("install")
        item.add_marker(pytest.mark.xdist_group(install.version if install else item.path.name))


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every run, whichever tests run before."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """On several threads sums run in another order for other shapes, and last bits differ."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
