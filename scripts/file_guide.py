"""Writes the guide to the files in CONTRIBUTING.md, a line for each module, from its docstring.

python scripts/file_guide.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
ROOMS = ("cldm_core", "nodes", "annotators")
START, END = "<!-- files: scripts/file_guide.py -->", "<!-- end of files -->"


def main() -> None:
    """Put the guide anew between its marks."""
    before, _, after = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{START}\n{guide()}\n{END}{after}", encoding="utf-8")


def split(page: str) -> tuple[str, str, str]:
    """What stands before the guide's marks, between them and behind them."""
    before, start, rest = page.partition(START)
    between, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{PAGE.name} has no place for the guide, from {START} to {END}.")
    return before, between.strip("\n"), after


def guide() -> str:
    """A heading for each folder, and below it a line for each of its modules."""
    modules = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    modules.sort(key=lambda path: (ROOMS.index(room_of(path)), path.parent, path.name))
    folders = groupby(modules, key=lambda path: path.parent)
    return "\n\n".join("\n".join(section(folder, [*files])) for folder, files in folders)


def section(folder: Path, files: list[Path]) -> Iterator[str]:
    """The lines of one folder; what its `__init__.py` says of it stands below its name."""
    yield f"### {folder.relative_to(ROOT).as_posix()}/"
    yield ""
    yield about(folder / "__init__.py")
    yield ""
    yield "| file | what it is |"
    yield "|---|---|"
    for path in files:
        if path.name != "__init__.py":
            yield f"| [`{path.name}`]({path.relative_to(ROOT).as_posix()}) | {about(path)} |"


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def about(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)} doesn't say what it is: give it a docstring.")
    return text.splitlines()[0].replace("|", "\\|")


if __name__ == "__main__":
    main()
