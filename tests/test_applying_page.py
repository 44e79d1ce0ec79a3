"""The numbers, texts and sentences of docs/applying.md are those of the code."""

import ast
import re
from pathlib import Path

import pytest
import torch

from controlnet_pack.cldm_core import FrameCurve, NoiseSchedule, Schedule, block_weights
from controlnet_pack.cldm_core.block_text import PRESETS, parse_blocks
from controlnet_pack.cldm_core.schedule import EASINGS

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "applying.md").read_text(encoding="utf-8")
UNKNOWN = "…"
FAMILIES = {
    "SD 1.5, SD 2.1": ("sd15", "sd21"),
    "SDXL": ("sdxl",),
    "T2I-Adapter, also for SDXL": ("t2i", "t2i_xl"),
}
STEPS, END = 20, 0.7


def table(heading: str) -> list[list[str]]:
    """The cells below the row that begins with these words."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def numbers(cell: str) -> list[float]:
    return [float(number) for number in cell.split(",")]


def texts(heading: str, last: str) -> list[str]:
    """The texts in backticks of the table after a heading, up to `last`."""
    part = PAGE[PAGE.index(heading) : PAGE.index(last)]
    rows = [line for line in part.splitlines() if line.startswith("| `")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_the_weights_of_the_modes_are_the_core_s() -> None:
    rows = table("family")
    assert len(rows) == 6
    shown = None
    for family, curve, weights in rows:
        shown = shown if weights == "the same" else numbers(weights)
        for name in FAMILIES[family]:
            for mode in ("prompt", "control"):
                told = [round(weight, 4) for weight in block_weights(mode, name, curve)]
                assert told == shown, (name, curve)


def test_the_presets_are_the_core_s() -> None:
    rows = dict(table("preset"))
    assert [*rows] == [*PRESETS]
    for name, weights in rows.items():
        assert [round(weight, 2) for weight in PRESETS[name](10)] == numbers(weights)


def test_texts_of_weights_can_be_read() -> None:
    found = texts("## Where in the UNet", "| preset |")
    assert len(found) == 4
    for text in found:
        parse_blocks(text, 4 if text[0] == "0" and ":" not in text else 13)


def test_texts_of_schedules_can_be_read() -> None:
    found = texts("`schedule` multiplies", "## What weighs more")
    assert len(found) == 5
    assert Schedule.parse(found[1]).at(0.59) == 1
    assert Schedule.parse(found[1]).at(0.6) == 0
    for text in found:
        Schedule.parse(text)
    assert all(f"`{name}`" in PAGE or f" {name}" in PAGE for name in EASINGS)


def test_one_number_for_each_step_needs_the_last_one_twice() -> None:
    assert "for one number for each step write the last one twice" in PAGE
    numbers = [step / 7 for step in range(STEPS)]
    spread = Schedule.parse(", ".join(f"{number:.6f}" for number in [*numbers, numbers[-1]]))
    found = [spread.at(step / STEPS) for step in range(STEPS)]
    assert found == pytest.approx(numbers, abs=1e-6)


def test_texts_of_frames_can_be_read() -> None:
    found = texts("## Batches and videos", "## Less time")
    assert len(found) == 3
    for text in found:
        assert len(FrameCurve.parse(text).factors(16)) == 16


def sigma(share: torch.Tensor) -> torch.Tensor:
    """The noise of SD 1.5 at shares of its timesteps, 0 the most, between them in logarithms."""
    signal = NoiseSchedule().alphas_cumprod()
    logs = ((1 - signal) / signal).sqrt().log()
    place = (1 - share) * (len(logs) - 1)
    low = place.floor().long()
    return torch.lerp(logs[low], logs[(low + 1).clamp(max=len(logs) - 1)], place - low).exp()


def test_the_steps_within_a_window_are_these() -> None:
    shares = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    high, low = sigma(shares[:1]), sigma(shares[-1:])
    sigmas = {
        "normal": sigma(shares),
        "karras": (high ** (1 / 7) + shares * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
    }
    edge = sigma(torch.tensor([END], dtype=torch.float64))
    by_steps = sum(step / STEPS <= END for step in range(STEPS))
    for name, timesteps, steps in table("scheduler"):
        assert int(timesteps) == int((sigmas[name] >= edge).sum())
        assert int(steps) == by_steps


def sentences() -> str:
    """All texts of the code, with … for what is put into them."""
    found = []
    for folder in ("nodes", "cldm_core"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(text_of(part) for part in node.values))
    return "\n".join(found)


def text_of(part: ast.expr) -> str:
    """A part of a formatted text; the inner one of a nested literal is its text."""
    return str(part.value) if isinstance(part, ast.Constant) else UNKNOWN


SENTENCES = sentences()


@pytest.mark.parametrize("row", table("when"), ids=lambda row: row[0])
def test_the_sentences_are_said(row: list[str]) -> None:
    assert row[1] in SENTENCES


@pytest.mark.parametrize(
    "word", ["Control Weights", "Control Timing", "Control Speed", "Curve from List"]
)
def test_options_are_explained(word: str) -> None:
    assert f"*{word}*" in PAGE


@pytest.mark.parametrize(
    "line",
    [
        "steps: on at … of …",
        "weights of … blocks: …",
        "rows: … with control, … left out",
        "computed … times, used again …",
        "time in the net: … s",
    ],
)
def test_lines_of_the_report_are_shown(line: str) -> None:
    lines = [row[0].strip("`") for row in table("line")]
    assert any(re.sub(r"[0-9]+(\.[0-9]+)?", UNKNOWN, shown).startswith(line) for shown in lines)
    assert line in SENTENCES
