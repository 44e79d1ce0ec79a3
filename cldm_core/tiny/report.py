"""The model card: adherence on held-out pictures, contact sheets, the curves of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..controlnet import ControlNet
from ..pipeline import Picture, Pipeline, to_hint
from ..residuals import weigh
from . import CONTROLS, load_control, load_pipeline, load_vae, weights
from .data import Emoji
from .evaluate import SEED, adherence, originals, sample
from .loop import RECORD_EVERY
from .stage_control import Task
from .stage_vae import pixels, psnr

CARD = Path(__file__).parent / "card"
SHEET_ROWS, SHEET_COLUMNS = 8, 4
METRICS = {"psnr": "PSNR, dB", "adherence": "adherence"}


def write_report(
    folder: Path, held_out: Sequence[Emoji], tasks: Sequence[Task], card: Path = CARD
) -> dict[str, Any]:
    """Measures the written weights, draws card/*.png, writes card/figures.json; the figures."""
    card.mkdir(exist_ok=True)
    pipeline, truth = load_pipeline(), originals(held_out)
    figures: dict[str, Any] = {"held_out": len(held_out)}
    figures["vae_psnr_db"] = round(
        psnr(load_vae(), pixels([p.astype(np.float32) / 255 for p in truth])), 2
    )
    without = sample(pipeline, [emoji.caption for emoji in held_out])
    for task in tasks:
        figures[task.name] = _measure(task, pipeline, held_out, truth, without, card)
    _plot_training(folder, tasks, card / "training.png")
    figures["sha256"] = {name: digest(weights(name)) for name in ("vae", "text", "unet", *CONTROLS)}
    figures["stages"] = {path.stem: _stage(path) for path in sorted(folder.glob("*.jsonl"))}
    (card / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def digest(path: Path) -> str:
    """The file's SHA-256: figures are those of these very weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _measure(
    task: Task,
    pipeline: Pipeline,
    held_out: Sequence[Emoji],
    truth: Picture,
    without: Picture,
    card: Path,
) -> dict[str, Any]:
    """Scores with control, at half strength and without; draws the contact sheet."""
    prompts = [emoji.caption for emoji in held_out]
    net = load_control(task.name)
    hints = np.stack([task.hint_of(picture) for picture in truth])
    steered = sample(pipeline, prompts, net, hints)
    half = sample(pipeline, prompts, net, hints, strength=0.5)
    _contact_sheet(prompts, [hints, without, steered, truth], card / f"{task.name}.png")

    def mean(pictures: Picture) -> float:
        return round(float(np.mean(adherence(pictures, hints, task.hint_of, task.score))), 3)

    return {
        "score": task.score.__name__,
        "with_control": mean(steered),
        "half_strength": mean(half),
        "without_control": mean(without),
        "strength_0_is_without_bit_for_bit": _strength_0_changes_nothing(pipeline, net, hints),
    }


def _strength_0_changes_nothing(pipeline: Pipeline, net: ControlNet, hints: Picture) -> bool:
    """Whether residuals times 0 leave the UNet's prediction as it is, bit for bit."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(len(hints), 4, hints.shape[1] // 8, hints.shape[2] // 8, generator=generator)
    timesteps = torch.linspace(0, 999, len(hints))
    with torch.no_grad():
        context = pipeline.encode_text([""] * len(hints))
        control = net(x, net.encode_hint(to_hint(hints)), timesteps, context)
        steered = pipeline.unet(x, timesteps, context, control=weigh(control, 0.0))
        return torch.equal(steered, pipeline.unet(x, timesteps, context))


def _stage(path: Path) -> dict[str, Any]:
    head, *rows = (json.loads(line) for line in path.read_text().splitlines())
    seconds = sum(row["seconds_per_step"] * RECORD_EVERY for row in rows)
    return {
        **head["plan"],
        "device": head["device"],
        "final_loss": round(rows[-1]["loss"], 5),
        "minutes": round(seconds / 60, 1),
    }


def _contact_sheet(prompts: Sequence[str], columns: Sequence[Picture], path: Path) -> None:
    """Groups of hint, without control, with control, original; SHEET_COLUMNS groups in a row."""
    from matplotlib.figure import Figure

    titles = ("hint", "without", "with control", "original")
    width = SHEET_COLUMNS * len(titles)
    figure = Figure(figsize=(width * 0.95, SHEET_ROWS * 1.08))
    axes = figure.subplots(SHEET_ROWS, width)
    for index, prompt in enumerate(prompts[: SHEET_ROWS * SHEET_COLUMNS]):
        row, group = divmod(index, SHEET_COLUMNS)
        for offset, pictures in enumerate(columns):
            axis = axes[row, group * len(titles) + offset]
            axis.imshow(pictures[index])
            axis.set_title(
                titles[offset] if row == 0 else "", fontsize=8, pad=12 if row == 0 else 2
            )
            axis.set_axis_off()
        axes[row, group * len(titles)].text(0, -6, prompt, fontsize=7)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, 0.04, 0.14)
    figure.savefig(path, dpi=110)


def _plot_training(folder: Path, tasks: Sequence[Task], path: Path) -> None:
    """Loss of every stage, and what was measured over its steps: the sudden convergence."""
    from matplotlib.figure import Figure

    stages = ["vae", "unet", *(f"control_{task.name}" for task in tasks)]
    figure = Figure(figsize=(3.6 * len(stages), 3.2), layout="constrained")
    for axis, stage in zip(figure.subplots(1, len(stages)), stages, strict=True):
        rows = [
            json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()[1:]
        ]
        axis.plot(
            [row["step"] for row in rows],
            [row["loss"] for row in rows],
            color="tab:grey",
            label="loss",
        )
        axis.set_title(stage)
        axis.set_xlabel("step")
        axis.set_yscale("log")
        for metric, label in METRICS.items():
            points = [(row["step"], row[metric]) for row in rows if metric in row]
            if points:
                other = axis.twinx()
                other.plot(*zip(*points, strict=True), color="tab:red", marker=".", label=label)
                other.set_ylabel(label, color="tab:red")
        axis.set_ylabel("loss", color="tab:grey")
    figure.savefig(path, dpi=110)
