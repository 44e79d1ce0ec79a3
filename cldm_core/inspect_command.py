"""The command line's `inspect`: what files hold, in a table as wide as the terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointInfo, inspect_checkpoint
from .checkpoint.inspect import UNKNOWN
from .checkpoint.signs import shortened
from .errors import CldmError, listed, printable

HEADINGS = (
    "file",
    "kind",
    "base",
    "keys",
    "hint",
    "types",
    "pooling",
    "dtype",
    "parameters",
    "size",
)
UNREADABLE = "unreadable"
NOTHING = "-"
LISTED = 10
"""How many keys of each sort are named."""


def add_parser(commands: Any) -> None:
    """Adds the verb to the parser's commands."""
    parser = commands.add_parser(
        "inspect",
        help="what checkpoint files hold",
        description="Says for each file what net it holds, for which base models, in what keys and "
        "number type, and which keys are missing or too many. The exit code is 2 where a file "
        "can't be read or isn't known.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    found: dict[Path, CheckpointInfo | None] = {}
    failed: list[str] = []
    for file in arguments.files:
        try:
            found[file] = inspect_checkpoint(file)
        except (CldmError, OSError) as error:
            found[file] = None
            failed.append(f"{printable(str(file))}: {error}")
    names = dict(zip(found, map(printable, short_names(list(found))), strict=True))
    if any(found.values()):
        sys.stdout.write(_shown({names[file]: info for file, info in found.items()}))
    for file, info in found.items():
        if info is not None:
            sys.stdout.writelines(f"{names[file]}: {line}\n" for line in _remarks(info))
    sys.stderr.writelines(f"{line}\n" for line in failed)
    known = all(info is not None and info.format != UNKNOWN for info in found.values())
    return 0 if known else 2


def _shown(found: dict[str, CheckpointInfo | None]) -> str:
    """The table, or a line for each file where the terminal is too narrow for it."""
    rows = {name: _row(name, info) for name, info in found.items()}
    told = [rows[name] for name, info in found.items() if info is not None]
    above, columns = _split(told, alone=len(told) == len(rows))
    text = table([[row[index] for index in columns] for row in (HEADINGS, *rows.values())], right=2)
    width = shutil.get_terminal_size().columns
    if max(map(len, text.splitlines())) > width:
        return "".join(f"{name}: {info or UNREADABLE}\n" for name, info in found.items())
    if above:
        text = textwrap.fill("all: " + ", ".join(above), width) + "\n" + text
    return text


def _split(rows: Sequence[Sequence[str]], *, alone: bool) -> tuple[list[str], list[int]]:
    """What is the same in all rows, in words, and the columns in which they differ.

    Columns that say nothing anywhere go. alone: whether these are all rows of the table; unreadable
    files say so under `kind`. Name, parameters and size always stay.
    """
    above, columns = [], []
    for index, heading in enumerate(HEADINGS):
        cells = {row[index] for row in rows}
        stays = index in (0, len(HEADINGS) - 2, len(HEADINGS) - 1)
        if not stays and cells == {NOTHING}:
            continue
        if stays or len(rows) == 1 or len(cells) > 1 or (heading == "kind" and not alone):
            columns.append(index)
        else:
            above.append(f"{heading} {cells.pop()}")
    return above, columns


def short_names(files: Sequence[Path]) -> list[str]:
    """The files without the folder that all of them lie in."""
    try:
        common = os.path.commonpath([file.parent for file in files])
    except ValueError:
        # Some are absolute and some are not.
        return list(map(str, files))
    return [os.path.relpath(file, common) if common else str(file) for file in files]


def table(rows: Sequence[Sequence[str]], *, right: int) -> str:
    """Lines with the cells of each column under one another, the last `right` ones to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - right
    lines = (
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _row(name: str, info: CheckpointInfo | None) -> tuple[str, ...]:
    if info is None:
        return (name, UNREADABLE, *[NOTHING] * (len(HEADINGS) - 2))
    return (
        name,
        info.kind,
        info.family,
        info.layout or NOTHING,
        str(info.hint_channels or NOTHING),
        str(len(info.control_types) or NOTHING),
        info.pooling or "-",
        info.dtype,
        f"{info.parameters / 1e6:.1f} M",
        f"{info.size / 1e6:.1f} MB" if info.size is not None else NOTHING,
    )


def _remarks(info: CheckpointInfo) -> Iterable[str]:
    if info.hint not in ("", UNKNOWN):
        yield f"the hint must be: {info.hint}"
    if info.control_types:
        yield f"control types {', '.join(info.control_types)}"
    for title in ("missing", "unexpected", "misshapen"):
        keys: tuple[str, ...] = getattr(info, title)
        if keys:
            yield f"{len(keys)} {title}: {listed(map(shortened, keys), LISTED)}"
    if info.nearest:
        yield f"likest to {', '.join(info.nearest)}"
    if info.note:
        yield info.note
