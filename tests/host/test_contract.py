"""The pack in a host that lacks names it needs: one line that says so, and all other nodes."""

from pathlib import Path

import pytest

from .hosts import HostInstall
from .in_process import run_in_host

SCRIPT = Path(__file__).parent / "inside" / "contract.py"
APPLY, TINY, CANNY = "CLDM_ApplyControlNet", "CLDM_LoadTinyModel", "CLDM_Canny"


@pytest.fixture(scope="module")
def loads(install: HostInstall, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What each load of the pack gave, by what the host lacked."""
    return run_in_host(install, SCRIPT, folder=tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize(
    ("lacking", "names"),
    [
        ("wrapper", ["comfy.patcher_extension.WrappersMP.CALC_COND_BATCH"]),
        ("hook", ["comfy.hooks.TransformerOptionsHook"]),
        ("two", ["comfy.hooks.TransformerOptionsHook", "comfy.ops.pick_operations"]),
        ("method", ["comfy.model_patcher.ModelPatcher.set_additional_models"]),
        ("model", ["comfy.sd1_clip.SD1Tokenizer"]),
    ],
)
def test_what_the_host_lacks_is_named_in_one_line(loads, lacking: str, names: list[str]) -> None:
    (line,) = loads[lacking]["lines"]
    assert line.startswith(f"This version of ComfyUI lacks {', '.join(names)}: ")
    assert "\n" not in line


@pytest.mark.parametrize("lacking", ["wrapper", "hook", "two", "method"])
def test_without_them_all_nodes_but_those_around_control_nets_are_there(loads, lacking) -> None:
    found, whole = loads[lacking], set(loads["nothing"]["nodes"])
    assert found["loaded"]
    assert CANNY in found["nodes"]
    assert APPLY not in found["nodes"]
    assert set(found["nodes"]) < whole


def test_without_the_demo_model_s_names_only_its_node_is_missing(loads) -> None:
    found = loads["model"]
    assert set(loads["nothing"]["nodes"]) - set(found["nodes"]) == {TINY}


@pytest.mark.parametrize("time", ["nothing", "again"])
def test_with_nothing_missing_there_is_no_line(loads, time: str) -> None:
    assert loads[time]["lines"] == []
    assert {APPLY, TINY, CANNY} <= set(loads[time]["nodes"])
