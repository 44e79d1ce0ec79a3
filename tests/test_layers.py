"""What each room of the pack may know and do, read from its source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "seconohe",
    "server",
}
# Imports run one way: __init__ -> nodes -> {cldm_core, annotators} -> third party.
MAY_NOT_IMPORT = {
    "cldm_core": HOST | {"annotators", "nodes", "scripts", "tests"},
    "annotators": HOST | {"cldm_core", "nodes", "scripts", "tests"},
    "nodes": {"accelerate", "cv2", "diffusers", "scripts", "tests"},
}
LINES_AT_MOST = 400
# What the annotators import when they are used, and not before; their networks may.
HEAVY = {
    "ai_edge_litert",
    "cv2",
    "huggingface_hub",
    "onnxruntime",
    "ray",
    "safetensors",
    "scipy",
    "skimage",
    "torch",
    "torchvision",
    "tqdm",
    "transformers",
    "webdataset",
}

SOURCES = [path for room in MAY_NOT_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path, nodes: list[ast.stmt] | None = None) -> set[str]:
    """The rooms and packages that a file imports, relative imports resolved from the root."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in nodes or ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return {name.partition(".")[0] for name in found}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def keywords(call: ast.Call) -> dict[str, object]:
    """The keyword arguments of a call that are literals."""
    return {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}


@pytest.fixture(params=SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def source(request) -> Path:
    return request.param


def test_knows_no_room_above_it(source):
    room = source.relative_to(ROOT).parts[0]
    assert not imported(source) & MAY_NOT_IMPORT[room]


ANNOTATORS = [
    path for path in sorted((ROOT / "annotators").glob("*.py")) if path.stem != "downloads"
]


@pytest.mark.parametrize("path", ANNOTATORS, ids=lambda path: path.stem)
def test_annotators_import_heavy_packages_and_networks_only_in_functions(path):
    at_once = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert at_once  # at least __future__
    assert not imported(path, at_once) & HEAVY
    relative = [node for node in at_once if isinstance(node, ast.ImportFrom) and node.level]
    names = {name for node in relative for name in (node.module, *(a.name for a in node.names))}
    assert not [name for name in names if name and name.partition(".")[0] in ("downloads", "nets")]


def test_root_imports_the_nodes_only_when_asked():
    root = ROOT / "__init__.py"
    at_once = imported(root, parse(root).body)
    assert at_once == {"__future__", "logging", "typing"}
    assert imported(root) - at_once == {"nodes"}


def test_the_nodes_ask_what_the_host_lacks_before_they_know_it():
    # A host without a base class of the adapter must still get the nodes that do without.
    at_once = known_at_once(ROOT / "nodes" / "__init__.py")
    assert {"contract.py", "hints.py"} <= {path.name for path in at_once}
    assert "host" not in {path.parent.name for path in at_once}
    hosts = {name for path in at_once for name in imported(path, parse(path).body) & HOST}
    assert hosts == {"comfy_api"}


def known_at_once(path: Path, known: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """The module and those of nodes/ that are imported with it, not later in a function."""
    known |= {path}
    for node in parse(path).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            above = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            near = [above.with_suffix(".py"), above / "__init__.py"]
            near += [above / f"{alias.name}.py" for alias in node.names]
            for other in set(near) - known:
                if other.is_file() and other.is_relative_to(ROOT / "nodes"):
                    known |= known_at_once(other, known)
    return known


def test_only_the_adapter_knows_the_host_beyond_its_interface_for_nodes():
    for path in (ROOT / "nodes").glob("*.py"):
        assert imported(path) & HOST <= {"comfy_api"} | (
            {"seconohe"} if path.stem == "log" else set()
        )


def test_what_a_node_refuses_is_an_error_of_the_core():
    for path in (ROOT / "nodes").rglob("*.py"):
        raised = [node.exc for node in ast.walk(parse(path)) if isinstance(node, ast.Raise)]
        names = {ast.unparse(exc.func) for exc in raised if isinstance(exc, ast.Call)}
        assert "ValueError" not in names, path.name


def test_loads_only_tensors_and_all_of_them(source):
    for call in ast.walk(parse(source)):
        if isinstance(call, ast.Call):
            if ast.unparse(call.func) == "torch.load":
                assert keywords(call).get("weights_only") is True, ast.unparse(call)
            if ast.unparse(call.func).endswith("load_state_dict"):
                assert keywords(call).get("strict") is not False, ast.unparse(call)


def test_installs_nothing(source):
    constants = [node for node in ast.walk(parse(source)) if isinstance(node, ast.Constant)]
    assert not [constant for constant in constants if constant.value == "pip"]


def test_is_one_thing(source):
    assert len(source.read_text(encoding="utf-8").splitlines()) <= LINES_AT_MOST
