"""Writes the tables of annotators in README.md and docs/annotators.md, made from their records.

python scripts/annotator_table.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    from annotators import GROUPS

    rows: list[tuple[str, ...]] = []
    for group, members in GROUPS.items():
        rows.append((f"**{group}**", "", "", "", ""))
        rows.extend(summary(records[one.name]) for one in members)
    return joined(("node", "name", "what it makes", "weights", "commercial"), rows)


def summary(record: Annotator) -> tuple[str, ...]:
    """What the overview says of one annotator."""
    return (
        f"{record.title} (CLDM)",
        f"`{record.name}`",
        record.description,
        ", ".join(licences(record.weights)) or "none",
        commercial(record),
    )


def licences(weights: Iterable[Weights]) -> list[str]:
    """Each licence once, with the size of all its files where every one is known."""
    sizes: dict[str, list[int | None]] = {}
    for one in weights:
        sizes.setdefault(short_licence(one.licence), []).append(one.bytes)
    return [f"{name}{span(known)}" for name, known in sizes.items()]


def short_licence(licence: str) -> str:
    """Its name, without what it says and who gave it."""
    return re.split(r": | \(", licence, maxsplit=1)[0]


def span(sizes: list[int | None]) -> str:
    """` (17 MB)`; nothing where a size isn't known."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return ""
    return f" ({megabytes(sum(known))})"


def megabytes(size: int) -> str:
    """Megabytes, rounded to what matters."""
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def commercial(record: Annotator) -> str:
    """Yes or no; where some weights may and some may not be used, which."""
    free = [one.commercial for one in record.weights]
    if all(free):
        return COMMERCIAL[True]
    if not any(free):
        return COMMERCIAL[False]
    names = zip(choices(record), free, strict=True)
    return "only " + ", ".join(f"`{name}`" for name, is_free in names if is_free)


def choices(record: Annotator) -> Sequence[str]:
    """What a user chooses each of the weights by: a setting with a value for each, or its file."""
    for setting in record.params.values():
        values: Sequence[str] = getattr(setting, "choices", ())
        if len(values) == len(record.weights):
            return values
    return [one.name for one in record.weights]


def files(records: Records) -> str:
    """Every file of weights once, with who needs it, and what the licences with terms say."""
    users: dict[Weights, list[str]] = {}
    for record in records.values():
        for weights in record.weights:
            users.setdefault(weights, []).append(f"`{record.name}`")
    rows = (
        (
            ", ".join(names),
            f"[{shown(one)}]({address(one)})",
            size_of(one),
            short_licence(one.licence),
            COMMERCIAL[one.commercial],
        )
        for one, names in users.items()
    )
    terms = sorted({one.licence for one in users if ": " in one.licence})
    table = joined(("annotator", "file", "size", "licence", "commercial"), rows)
    return f"{table}\n\n{'. '.join(terms)}." if terms else table


def size_of(weights: Weights) -> str:
    """How large a file is, and whether it is taken unchecked for lack of a digest."""
    known = "not known" if weights.bytes is None else megabytes(weights.bytes)
    return known if weights.sha256 else f"{known}, unchecked"


def shown(weights: Weights) -> str:
    """A file's name, below that of its repository where many files have the same one."""
    from annotators.weights import COMMON_NAMES

    if weights.name not in COMMON_NAMES:
        return weights.name
    return f"{weights.repository.partition('/')[2]}/{weights.name}"


def address(weights: Weights) -> str:
    """The page of a file on the hub, else the one that its source names."""
    if weights.repository:
        return weights.page
    found = re.search(r"https://[^\s,#)]+", weights.source)
    if found is None:
        raise SystemExit(f"{weights.name} is on no hub, and its source names no page")
    return found[0].rstrip("/")


def settings(records: Records) -> str:
    """The settings of each annotator, and the resolution it has by itself."""
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
    """Default and range, what it means, and its other names."""
    others = ", ".join(f"`{other}`" for other in setting.also)
    default = setting.default
    help_ = f"{setting.help} (also {others})" if others else setting.help
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
