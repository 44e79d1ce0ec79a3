"""What `python -m cldm_core generate` does: pictures for hints, as pairs to train on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import (
    bind_to_pipeline,
    check_device,
    check_used,
    device_of,
    make_hint,
    open_net,
    open_pipeline,
    progress_bar,
    settings_of,
    typed,
)
from .control import Control
from .errors import CldmError
from .pictures import middle
from .pipeline import Picture, Settings, to_hint

if TYPE_CHECKING:
    from .training.pairs import Pair


def generate(arguments: argparse.Namespace) -> None:
    """Writes a picture of the model for each hint and prompt of a data set; goes on where it was.

    Every pair has a seed of its own, so that a run that was stopped makes the same pairs.
    """
    from .training.dataset_writer import DatasetWriter
    from .training.sources import open_source

    if arguments.copies < 1:
        raise CldmError(f"copies is {arguments.copies}, expected a whole number from 1.")
    check_used(arguments)
    if arguments.out.resolve() == arguments.data.resolve():
        raise CldmError(f"{arguments.out} is the folder of the hints: write to another one.")
    device = device_of(arguments)
    check_device(device)
    source = open_source(arguments.data)
    writer = DatasetWriter(arguments.out, about=_about(arguments))
    total = len(source) * arguments.copies
    if len(writer) < total:
        settings, net = settings_of(arguments), open_net(arguments)
        pipeline = open_pipeline(arguments)
        with progress_bar("pairs") as progress:
            for number in range(len(writer), total):
                pair = source[number // arguments.copies]
                hint = _hint_of(pair, arguments.annotator, settings)
                steered = typed(to_hint(hint).to(device), net, arguments)
                control = Control(net, steered, strength=arguments.strength)
                control = bind_to_pipeline(control, pipeline)
                prompt = pair.prompt if arguments.prompt is None else arguments.prompt
                (picture,) = pipeline(
                    prompt,
                    [control],
                    replace(settings, seed=settings.seed + number),
                    negative=arguments.negative,
                )
                writer.add(picture, hint, prompt)
                progress(number + 1, total)
    sys.stdout.write("".join(_told(arguments.out, len(writer))))


def _hint_of(pair: Pair, annotator: str | None, settings: Settings) -> Picture:
    """The pair's hint; else what the annotator makes of its picture; else that picture itself."""
    taken = pair.read_target() if annotator or pair.hint is None else pair.read_hint()
    picture = middle(taken, settings.width, settings.height)
    return picture if annotator is None else make_hint(annotator, picture)


def _about(arguments: argparse.Namespace) -> dict[str, str]:
    """What tells one data set from another: with other settings its pairs would not belong."""
    names = ("data", "controlnet", "control_type", "checkpoint", "annotator", "prompt", "negative")
    numbers = ("copies", "strength", "steps", "guidance", "scheduler", "size", "seed")
    return {
        name: str(value)
        for name in (*names, *numbers)
        if (value := getattr(arguments, name)) is not None
    }


def _told(out: Path, count: int) -> Iterator[str]:
    yield f"{count} pairs in {out.resolve()}\n"
    yield f"Train on them: python -m cldm_core train --data {out}\n"
