"""Writes the tables of annotators in README.md and docs/annotators.md, made from their records.

python scripts/annotator_table.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]

if TYPE_CHECKING:
    from annotators import Annotator, Choice, Param, Weights
    from annotators.settings import Setting

    Records = Mapping[str, Annotator]

COMMERCIAL = {True: "yes", False: "**no**"}


def main() -> None:
    """Put every table anew between its marks."""
    sys.path.insert(0, str(ROOT))
    from annotators import ANNOTATORS

    for page, tables in TABLES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = replaced(text, name, table(ANNOTATORS))
        path.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, table: str) -> str:
    """The page with this table between the marks of that name."""
    start, end = marks(name)
    new, count = re.subn(
        f"{re.escape(start)}.*?{re.escape(end)}",
        lambda _: f"{start}\n{table}\n{end}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{count} places for the table {name}, marked by {start} and {end}")
    return new


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind a table; no reader sees it."""
    return f"<!-- {name}: scripts/annotator_table.py -->", f"<!-- end of {name} -->"


def overview(records: Records) -> str:
    """Node, name, what it makes, whose licence, and whether that allows commercial use."""
    rows = (
        (
            f"{one.title} (CLDM)",
            f"`{one.name}`",
            one.description,
            ", ".join(licences(one.weights)) or "none",
            commercial(one.weights),
        )
        for one in records.values()
    )
    return joined(("node", "name", "what it makes", "weights", "commercial use"), rows)


def licences(weights: Iterable[Weights]) -> list[str]:
    """Each licence once, with the size of all its files where every one is known."""
    sizes: dict[str, list[int | None]] = {}
    for one in weights:
        sizes.setdefault(one.licence, []).append(one.bytes)
    return [f"{name}{span(known)}" for name, known in sizes.items()]


def span(sizes: list[int | None]) -> str:
    """` (17 MB)`; nothing where a size isn't known."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return ""
    return f" ({megabytes(sum(known))})"


def megabytes(size: int) -> str:
    """Megabytes, rounded to what matters."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def commercial(weights: tuple[Weights, ...]) -> str:
    """Yes or no; where some may and some may not be used, which."""
    free = [one for one in weights if one.commercial]
    if 0 < len(free) < len(weights):
        return "only " + ", ".join(f"`{one.name}`" for one in free)
    return COMMERCIAL[len(free) == len(weights)]


def files(records: Records) -> str:
    """Every file of weights once, with who needs it."""
    users: dict[Weights, list[str]] = {}
    for record in records.values():
        for weights in record.weights:
            users.setdefault(weights, []).append(f"`{record.name}`")
    rows = (
        (
            ", ".join(names),
            f"[{one.name}]({one.page})" if one.repository else one.name,
            one.repository or one.source.rstrip(","),
            "not known" if one.bytes is None else megabytes(one.bytes),
            one.licence,
            COMMERCIAL[one.commercial],
        )
        for one, names in users.items()
    )
    head = ("annotator", "file", "where it is from", "size", "licence", "commercial use")
    return joined(head, rows)


def settings(records: Records) -> str:
    """What each annotator can be told, and the resolution it has by itself."""
    rows = (
        (
            f"`{record.name}`",
            str(record.resolution),
            "<br>".join(f"`{name}` {told(one)}" for name, one in record.params.items()),
        )
        for record in records.values()
    )
    return joined(("annotator", "`resolution`", "other settings, with default and range"), rows)


def told(setting: Setting) -> str:
    """Default and range, and what it means."""
    default, help_ = setting.default, setting.help
    if isinstance(default, bool):
        return f"{'on' if default else 'off'}: {help_}"
    if isinstance(default, str):
        choice: Choice = setting  # type: ignore[assignment]
        return f"{default} ({', '.join(choice.choices)}): {help_}"
    number: Param = setting  # type: ignore[assignment]
    return f"{short(default)} ({short(number.min)} to {short(number.max)}): {help_}"


def short(number: float) -> str:
    """Four digits at the most behind the point."""
    return f"{round(number, 4):g}" if isinstance(number, float) else str(number)


def joined(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


Table = Callable[["Records"], str]
TABLES: dict[str, dict[str, Table]] = {
    "README.md": {"annotators": overview},
    "docs/annotators.md": {"weights": files, "settings": settings},
}


if __name__ == "__main__":
    main()
