"""From the samples of `annotators.py` to its rows: medians, ratios within a round, gains."""

from __future__ import annotations

from typing import Any

from annotators_cases import AUX, CASES, OPENCV, OURS
from apply import spread

NETS = {case.name for case in CASES if case.net}
ORDER = [case.name for case in CASES]
Timing = dict[str, list[list[float]]]
"""By "case|size|side|batch": seconds by the clock and of the processor, round by round."""


def rows_of(timing: Timing) -> dict[str, dict[str, Any]]:
    """By "case|size": seconds of each side; ratios of ours to the others; the gain of a batch."""
    rows: dict[str, dict[str, Any]] = {}
    for key in sorted(timing, key=place_of):
        case, size, by, count = key.split("|")
        place = f"{case}|{size}"
        row = rows.setdefault(place, {})
        row[f"{by} {count}"] = spread([one[0] for one in timing[key]], 5)
    for place, row in rows.items():
        counts = [key.removeprefix(f"{OURS} ") for key in row if key.startswith(f"{OURS} ")]
        own = {int(count): timing[f"{place}|{OURS}|{count}"] for count in counts}
        for by in (AUX, OPENCV):
            for count in own:
                other = timing.get(f"{place}|{by}|{count}")
                factor = 1
                if other is None:
                    # A slow side's batch is a loop, reckoned from one picture.
                    other, factor = timing.get(f"{place}|{by}|1"), count
                if other:
                    row[f"to {by} {count}"] = ratios(own[count], other, factor)
        batch = max(own)
        if batch > 1 and place.partition("|")[0] in NETS:
            row["gain"] = ratios(own[1], own[batch], 1 / batch)
    return rows


def place_of(key: str) -> tuple[int, int]:
    """Where a row stands: as in CASES, and by size."""
    case, size, *_ = key.split("|")
    return ORDER.index(case) if case in ORDER else len(ORDER), int(size)


def ratios(ours: list[list[float]], other: list[list[float]], factor: float) -> dict[str, Any]:
    """Spread of ours / (factor * other) over the rounds, by the clock and of the processor."""
    pairs = list(zip(ours, other, strict=False))
    clock = spread([one[0] / (factor * two[0]) for one, two in pairs])
    cpu = spread([one[1] / (factor * two[1]) for one, two in pairs])
    return {**clock, "cpu": cpu["median"]}


def table(rows: dict[str, dict[str, Any]], case: str | None = None) -> str:
    """One line for each annotator and size, of all or of one annotator."""
    return "\n".join(
        line(place, row)
        for place, row in rows.items()
        if case is None or place.startswith(f"{case}|")
    )


def line(place: str, row: dict[str, Any]) -> str:
    name, size = place.split("|")
    cells = [f"{name:18}{size:>5}", f"{1000 * row[f'{OURS} 1']['median']:10.2f} ms"]
    for key in [key for key in row if key.startswith("to ")]:
        one = row[key]
        cells.append(
            f"{key[3:]:>17} {one['median']:.2f} ({one['lower']:.2f}-{one['upper']:.2f})"
            f" cpu {one['cpu']:.2f}"
        )
    if "gain" in row:
        cells.append(f"; gain {row['gain']['median']:.2f} cpu {row['gain']['cpu']:.2f}")
    return "".join(cells)
