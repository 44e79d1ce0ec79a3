"""What the command line does, beyond reading its arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import tiny
from .checkpoint import load_controlnet
from .errors import CldmError
from .hooks import named_function
from .pictures import read_picture, side_by_side, square, write_picture
from .pipeline import Control, Picture, Pipeline, Settings, to_hint

if TYPE_CHECKING:
    from .controlnet import ControlNet

TINY_GUIDANCE, FULL_GUIDANCE = 3.0, 7.5
TINY_SETTINGS = Settings(steps=25, guidance=TINY_GUIDANCE, width=tiny.SIZE, height=tiny.SIZE)
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def demo(picture: Path | None, prompt: str | None, out: Path, seed: int) -> None:
    """Hint of a picture, then the embedded model with and without it, side by side in `out`."""
    original = square(read_picture(picture or tiny.EXAMPLE), tiny.SIZE)
    prompt = prompt if prompt is not None else ("" if picture else tiny.EXAMPLE_PROMPT)
    hint = named_function("annotators:canny")(original)
    pipeline = tiny.load_pipeline()
    control = Control(tiny.load_control("canny"), to_hint(hint))
    settings = replace(TINY_SETTINGS, seed=seed)
    (without,) = pipeline(prompt, [], settings, progress=progress_bar("without control"))
    (steered,) = pipeline(prompt, [control], settings, progress=progress_bar("with control"))
    titles = ["picture", "hint (Canny)", "without control", "with control"]
    write_picture(side_by_side([original, hint, without, steered], titles), out)
    sys.stdout.write(f"Prompt: {prompt!r}. The pictures are side by side in {out.resolve()}\n")


def sample(arguments: argparse.Namespace) -> None:
    """Pictures from the command line's settings, each in a file of its own."""
    pipeline = _pipeline(arguments)
    default_size = 512 if arguments.checkpoint else tiny.SIZE
    default_guidance = FULL_GUIDANCE if arguments.checkpoint else TINY_GUIDANCE
    size = arguments.size or default_size
    settings = Settings(
        steps=arguments.steps,
        guidance=default_guidance if arguments.guidance is None else arguments.guidance,
        seed=arguments.seed,
        width=size,
        height=size,
        count=arguments.count,
        scheduler=arguments.scheduler,
    )
    pictures = pipeline(
        arguments.prompt,
        _controls(arguments, size),
        settings,
        negative=arguments.negative,
        progress=progress_bar("sampling"),
    )
    for index, picture in enumerate(pictures):
        name = arguments.out
        path = name if len(pictures) == 1 else name.with_stem(f"{name.stem}_{index}")
        write_picture(picture, path)
        sys.stdout.write(f"{path}\n")


def progress_bar(title: str) -> Callable[[int, int], None]:
    """A bar on standard error that is moved by calls (step, steps)."""
    from tqdm import tqdm

    bar: Any = tqdm(desc=title, unit="step")

    def update(step: int, steps: int) -> None:
        bar.total = steps
        bar.update(step - bar.n)
        if step == steps:
            bar.close()

    return update


def _pipeline(arguments: argparse.Namespace) -> Pipeline:
    device, dtype = arguments.device, TYPES[arguments.dtype]
    if arguments.checkpoint is None:
        return tiny.load_pipeline(device=device, dtype=dtype)
    from .single_file import load_pipeline

    return load_pipeline(
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        prediction=arguments.prediction,
        device=device,
        dtype=dtype,
    )


def _controls(arguments: argparse.Namespace, size: int) -> list[Control]:
    if arguments.controlnet is None:
        if arguments.hint:
            raise CldmError(
                "A hint was given without a net: add --controlnet FILE, or embedded:canny."
            )
        return []
    if arguments.hint is None:
        raise CldmError("A ControlNet was given without a hint: add --hint PICTURE.")
    net = _net(arguments)
    hint = to_hint(_hint(arguments, size)).to(arguments.device)
    return [
        Control(net, hint, arguments.strength, arguments.start, arguments.end, arguments.guess_mode)
    ]


def _net(arguments: argparse.Namespace) -> ControlNet:
    source, _, name = arguments.controlnet.partition(":")
    path = tiny.weights(name) if source == "embedded" else Path(arguments.controlnet)
    return load_controlnet(path, device=arguments.device, dtype=TYPES[arguments.dtype])


def _hint(arguments: argparse.Namespace, size: int) -> Picture:
    picture = square(read_picture(arguments.hint), size)
    if arguments.annotator is None:
        return picture
    hint: Picture = named_function(arguments.annotator)(picture)
    return hint
