"""The pack in a host that lacks names it needs: one line that says so, and all other nodes."""

import ast
from pathlib import Path

import pytest

from .hosts import PACK, HostInstall
from .in_process import run_in_host

SCRIPT = Path(__file__).parent / "inside" / "contract.py"
NODES = PACK / "nodes"
OPTIONAL = {"comfy.model_management.archive_model_dtypes"}
"""Asked for where they are used: not all versions have them."""
APPLY, TINY = "CLDM_ApplyControlNet", "CLDM_LoadTinyModel"
CANNY, FIT_HINT, DETECT_POSE = "CLDM_Canny", "CLDM_FitHint", "CLDM_DetectPose"


@pytest.fixture(scope="module")
def loads(install: HostInstall, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What each load of the pack gave, by what the host lacked."""
    return run_in_host(install, SCRIPT, folder=tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize(
    ("lacking", "names"),
    [
        ("base", ["comfy.controlnet.ControlBase"]),
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


@pytest.mark.parametrize("lacking", ["base", "wrapper", "hook", "two", "method"])
def test_without_them_all_nodes_but_those_around_control_nets_are_there(loads, lacking) -> None:
    found, whole = loads[lacking], set(loads["nothing"]["nodes"])
    assert found["loaded"]
    assert {CANNY, FIT_HINT, DETECT_POSE, TINY} <= set(found["nodes"])
    assert APPLY not in found["nodes"]
    assert set(found["nodes"]) < whole


def test_without_the_demo_model_s_names_only_its_node_is_missing(loads) -> None:
    found = loads["model"]
    assert set(loads["nothing"]["nodes"]) - set(found["nodes"]) == {TINY}


def test_without_the_interface_for_nodes_one_line_says_so(loads) -> None:
    found = loads["interface"]
    (line,) = found["lines"]
    assert "This version of ComfyUI lacks" in line
    assert "comfy_api.v0_0_2" in line
    assert line.endswith("update ComfyUI (0.3.64 or later).")
    assert "\n" not in line
    assert not found["loaded"]
    assert found["nodes"] == []


@pytest.mark.parametrize("time", ["nothing", "again"])
def test_with_nothing_missing_there_is_no_line(loads, time: str) -> None:
    assert loads[time]["lines"] == []
    assert {APPLY, TINY, CANNY} <= set(loads[time]["nodes"])


def names_of(tree: ast.AST) -> set[str]:
    """The names of the host that a module uses, as module.name or module.Class.name."""
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name for name in found | imported if name.startswith(("comfy.", "folder_paths."))}


def test_the_contract_names_everything_that_the_nodes_use_of_the_host() -> None:
    contract = (NODES / "contract.py").read_text(encoding="utf-8")
    used = set().union(
        *(names_of(ast.parse(path.read_text(encoding="utf-8"))) for path in NODES.rglob("*.py"))
    )
    plain = {name for name in used if name.replace(".", "_").isidentifier()}
    assert len(plain) > 30
    unnamed = {name for name in plain if not _named(name, contract)}
    assert unnamed <= OPTIONAL


def _named(name: str, contract: str) -> bool:
    """Whether the contract has the name, a part of it (a class), or names inside of it."""
    return f'"{name}' in contract or f'"{name.rpartition(".")[0]}"' in contract
