"""What the README and the model card say can be typed, opened and imported."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from controlnet_pack import cldm_core
from controlnet_pack.annotators import ANNOTATORS
from controlnet_pack.annotators.options import parser as annotators_parser
from controlnet_pack.cldm_core.__main__ import make_parser as core_parser
from controlnet_pack.cldm_core.tiny.build import make_parser as build_parser
from controlnet_pack.scripts import annotator_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *("README.md", "CONTRIBUTING.md", "cldm_core/tiny/README.md"),
    *("docs/annotators.md", "docs/applying.md", "docs/files.md", "docs/hints.md"),
    *("docs/inspector.md", "docs/training.md", "benchmarks/README.md"),
]
PARSERS = {
    "cldm_core": core_parser,
    "annotators": annotators_parser,
    "cldm_core.tiny.build": build_parser,
}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: str) -> list[list[str]]:
    """What the page's code blocks call with `python -m MODULE`, split as a shell does."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    shell = "\n".join(block for language, block in blocks if not language)
    lines = shell.replace("\\\n", " ").splitlines()
    return [
        shlex.split(line.partition("python -m ")[2], comments=True)
        for line in lines
        if "python -m" in line
    ]


CALLS = [(page, call) for page in PAGES for call in commands(page) if call[0] in PARSERS]


@pytest.mark.parametrize(("page", "call"), CALLS, ids=lambda value: " ".join(value)[:40])
def test_commands_are_understood(page: str, call: list[str]) -> None:
    module, *arguments = call
    PARSERS[module]().parse_args(arguments)


def test_every_command_line_is_shown() -> None:
    assert {call[0] for _, call in CALLS} == set(PARSERS)


TABLES = [(page, name) for page, tables in annotator_table.TABLES.items() for name in tables]


@pytest.mark.parametrize(("page", "name"), TABLES)
def test_tables_of_annotators_are_what_their_records_say(page: str, name: str) -> None:
    start, end = annotator_table.marks(name)
    table = text(page).partition(f"{start}\n")[2].partition(f"\n{end}")[0]
    # Where this fails: python scripts/annotator_table.py
    assert table == annotator_table.TABLES[page][name](ANNOTATORS)


def test_a_table_names_what_may_be_used_commercially_by_its_choice() -> None:
    assert annotator_table.commercial(ANNOTATORS["depth_anything_v2"]) == "only `small`"
    assert annotator_table.commercial(ANNOTATORS["openpose"]) == "**no**"
    assert annotator_table.commercial(ANNOTATORS["canny"]) == "yes"


def test_the_table_of_weights_is_narrow() -> None:
    table, _, terms = annotator_table.files(ANNOTATORS).partition("\n\n")
    rows = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", row) for row in table.splitlines()]
    assert max(map(len, rows)) < 110
    assert "CMU OpenPose: academic or non-profit, non-commercial research only" in terms


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", text(page))
    missing = [
        target
        for target in targets
        if not target.startswith("http") and not ((ROOT / page).parent / target).exists()
    ]
    assert missing == []


def test_make_targets_exist() -> None:
    makefile = text("Makefile")
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z][a-z-]+)\b", text(page)):
            if f"`make {target}" in text(page) or f"\nmake {target}" in text(page):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


EXAMPLES = re.findall(r"^```python\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["picture", "loop"])
def test_a_python_example_uses_names_that_exist(example: str) -> None:
    compile(example, "README.md", "exec")
    found = [node for node in ast.parse(example).body if isinstance(node, ast.ImportFrom)]
    (imports,) = [node for node in found if node.module == "cldm_core"]
    assert {alias.name for alias in imports.names} <= set(cldm_core.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_core_that_a_page_gives_are_public(page: str) -> None:
    named = re.findall(r"`cldm_core\.([A-Z]\w+|\w+(?=\())", text(page))
    assert set(named) <= set(cldm_core.__all__)


def test_public_names_are_sorted_and_there() -> None:
    names = cldm_core.__all__
    constants = [name for name in names if name.isupper() or name[:2] == "SD"]
    assert names == [*constants, *sorted(set(names) - set(constants), key=sort_key)]
    assert all(hasattr(cldm_core, name) for name in names)


def sort_key(name: str) -> tuple[bool, str]:
    """Classes before functions, as ruff sorts them."""
    return not name[0].isupper(), name
