"""The pack in a host that lacks what it needs before any node is there."""

import asyncio
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

import controlnet_pack


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ({"comfy_api": None}, "comfy_api"),
        ({"comfy_api": ModuleType("comfy_api")}, "comfy_api.v0_0_2"),
        (
            {
                "comfy_api": ModuleType("comfy_api"),
                "comfy_api.v0_0_2": ModuleType("comfy_api.v0_0_2"),
            },
            "ComfyExtension",
        ),
    ],
)
def test_without_the_interface_for_nodes_one_line_names_it(
    modules: dict, named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError) as found:
        asyncio.run(controlnet_pack.comfy_entrypoint())
    message = str(found.value)
    assert message.startswith("This version of ComfyUI lacks")
    assert named in message
    assert "\n" not in message
    assert not caplog.records, "the host logs the error"


def test_without_seconohe_the_nodes_have_a_plain_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seconohe", None)
    log = runpy.run_path(str(Path(controlnet_pack.__file__).parent / "nodes" / "log.py"))["log"]
    assert log.name == "ComfyUI-CLDM"
