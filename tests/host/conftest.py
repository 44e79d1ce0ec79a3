"""Real ComfyUI hosts for the tests in this folder; every test here is marked `host`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .client import HostClient
from .hosts import NO_HOST, HostInstall, find_hosts
from .in_process import run_in_host
from .server import HostServer

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("host")


@pytest.fixture(scope="session", params=find_hosts() or [None], ids=lambda h: h and h.version)
def install(request: pytest.FixtureRequest) -> HostInstall:
    """Each ComfyUI that was found, one after the other."""
    if request.param is None:
        pytest.skip(NO_HOST)
    return request.param


@pytest.fixture(scope="session")
def host(install: HostInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A running server of this host, with the pack in it; started once per session."""
    with HostServer(install, tmp_path_factory.mktemp(f"host-{install.version}")) as server:
        yield server


@pytest.fixture
def client(host: HostServer) -> Iterator[HostClient]:
    """A fresh connection to the running host."""
    connection = HostClient(host.url)
    yield connection
    connection.close()


@pytest.fixture
def in_host(install: HostInstall, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`in_host(script, {...})` runs a script inside this host's modules; see `run_in_host`."""

    def run(script: str | Path, args: dict[str, Any] | None = None) -> dict[str, Any]:
        return run_in_host(install, script, args, folder=tmp_path)

    return run


@pytest.fixture(scope="session")
def families(
    install: HostInstall, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the cases of every family (tests/host/inside) found in this host, by their groups."""
    from safetensors.torch import save_file

    from ..cldm_core.samples import OTHERS

    folder = tmp_path_factory.mktemp(f"families-{install.version}")
    others = folder / "others"
    others.mkdir()
    for name, made in OTHERS.items():
        state = {key: value.contiguous() for key, value in made().items()}
        save_file(state, others / f"{name}.safetensors")
    args = {"others": str(others), "kohya": os.environ.get("LLLITE_NODE")}
    return run_in_host(install, HERE / "inside" / "families.py", args, folder=folder)


@pytest.fixture(scope="session")
def apply_cases(
    install: HostInstall, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the cases of applied control (tests/host/inside/apply*.py) found, by their groups."""
    folder = tmp_path_factory.mktemp(f"apply-{install.version}")
    args = {"advanced": advanced_controlnet(install)}
    return run_in_host(install, HERE / "inside" / "apply.py", args, folder=folder)


def advanced_controlnet(install: HostInstall) -> str | None:
    """The folder of ComfyUI-Advanced-ControlNet: ADVANCED_CONTROLNET, or beside the host's."""
    beside = install.root.parent / "ComfyUI-Advanced-ControlNet"
    folder = Path(os.environ.get("ADVANCED_CONTROLNET", beside))
    return str(folder) if (folder / "__init__.py").is_file() else None


@pytest.fixture
def applied(apply_cases: dict[str, dict[str, Any]]) -> Callable[[str, str], Any]:
    """`applied(group, name)`: what one case found; its traceback, where it failed."""
    return lambda group, name: _answer(apply_cases, group, name)


@pytest.fixture
def case(families: dict[str, dict[str, Any]]) -> Callable[[str, str], Any]:
    """`case(group, name)`: what one case found; its traceback, where it failed."""

    return lambda group, name: _answer(families, group, name)


def _answer(groups: dict[str, dict[str, Any]], group: str, name: str) -> Any:
    answer = groups[group][name]
    assert "failed" not in answer, answer["failed"]
    return answer
