"""What the command line does, beyond reading its arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import tiny
from .block_text import parse_blocks
from .checkpoint import load_control, read
from .checkpoint.load import ControlModule
from .checkpoint.write import is_named_pooled, stored_pooling
from .config import ControlNetConfig
from .control import Control, Hint
from .control_lora import BoundControlNet
from .errors import CldmError
from .hooks import named_function
from .modes import weights_for
from .pictures import check_writable, middle, read_picture, side_by_side, write_picture
from .pipeline import Picture, Pipeline, Settings, to_hint
from .schedule import Schedule
from .union import UnionControlNet, control_type_names, control_type_number

TINY_GUIDANCE, FULL_GUIDANCE = 3.0, 7.5
TINY_SETTINGS = Settings(steps=25, guidance=TINY_GUIDANCE, width=tiny.SIZE, height=tiny.SIZE)
AUTO = "auto"
BELONGING = {
    "checkpoint": ("prediction", "tokenizer"),
    "controlnet": ("control_type", "annotator", "guess_mode", "blocks", "schedule"),
}
"""Options that only do something together with another one."""
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def demo(picture: Path | None, prompt: str | None, out: Path, seed: int) -> None:
    """Hint of a picture, then the embedded model with and without it, side by side in `out`."""
    check_writable(out)
    settings = replace(TINY_SETTINGS, seed=seed)
    original = middle(read_picture(picture or tiny.EXAMPLE), tiny.SIZE, tiny.SIZE)
    prompt = prompt if prompt is not None else ("" if picture else tiny.EXAMPLE_PROMPT)
    hint = make_hint("annotators:canny", original)
    pipeline = tiny.load_pipeline()
    control = Control(tiny.load_control("canny"), to_hint(hint))
    with progress_bar("without control") as progress:
        (without,) = pipeline(prompt, [], settings, progress=progress)
    with progress_bar("with control") as progress:
        (steered,) = pipeline(prompt, [control], settings, progress=progress)
    titles = ["picture", "hint (Canny)", "without control", "with control"]
    write_picture(side_by_side([original, hint, without, steered], titles), out)
    sys.stdout.write(f"Prompt: {prompt!r}. The pictures are side by side in {out.resolve()}\n")


def sample(arguments: argparse.Namespace) -> None:
    """Pictures from the command line's settings, each in a file of its own.

    What can be wrong without a look into the nets is found before they are loaded.
    """
    check_used(arguments)
    settings = settings_of(arguments)
    check_writable(arguments.out)
    check_device(device_of(arguments))
    controls = _controls(arguments, settings)
    pipeline = open_pipeline(arguments)
    controls = [bind_to_pipeline(control, pipeline) for control in controls]
    with progress_bar("sampling") as progress:
        pictures = pipeline(
            arguments.prompt,
            controls,
            settings,
            negative=arguments.negative,
            progress=progress,
        )
    for index, picture in enumerate(pictures):
        name = arguments.out
        path = name if len(pictures) == 1 else name.with_stem(f"{name.stem}_{index}")
        write_picture(picture, path)
        sys.stdout.write(f"{path}\n")


def check_used(arguments: argparse.Namespace) -> None:
    """Raises CldmError for an option without the one that it belongs to: it would do nothing."""
    for wanted, options in BELONGING.items():
        given = [name for name in options if getattr(arguments, name, None)]
        if given and getattr(arguments, wanted) is None:
            name = given[0].replace("_", "-")
            raise CldmError(f"--{name} is for --{wanted}: add --{wanted}, or leave --{name} out.")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that is moved by calls (step, steps), and not there before them."""
    from tqdm import tqdm

    with ExitStack() as stack:
        bar: Any = None

        def update(step: int, steps: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(tqdm(desc=title, total=steps, unit="step"))
            bar.update(step - bar.n)

        yield update


def make_hint(annotator: str, picture: Picture) -> Picture:
    """What the function MODULE:FUNCTION makes of a picture.

    Raises CldmError where it refuses the picture, or gives no picture of the same size.
    """
    function = named_function(annotator)
    try:
        hint = function(picture)
    except (TypeError, ValueError) as error:
        raise CldmError(
            f"{annotator} made no hint of the picture: {error}".rstrip(".") + "."
        ) from error
    is_array = isinstance(hint, np.ndarray)
    if not is_array or hint.dtype != np.uint8 or hint.shape != picture.shape:
        found = f"{hint.dtype} {hint.shape}" if is_array else type(hint).__name__
        raise CldmError(
            f"{annotator} gave {found}, expected a picture, uint8 {picture.shape}: choose an "
            "annotator, such as annotators:canny."
        )
    return np.asarray(hint)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """How pictures are sampled; what isn't given is the model's own."""
    guidance = FULL_GUIDANCE if arguments.checkpoint else TINY_GUIDANCE
    width, height = own_size(arguments) if arguments.size is None else arguments.size
    return Settings(
        steps=arguments.steps,
        guidance=guidance if arguments.guidance is None else arguments.guidance,
        seed=arguments.seed,
        width=width,
        height=height,
        count=getattr(arguments, "count", 1),
        scheduler=arguments.scheduler,
    )


def own_size(arguments: argparse.Namespace) -> tuple[int, int]:
    """Width and height in pixels that the model was made for."""
    if arguments.checkpoint is None:
        return tiny.SIZE, tiny.SIZE
    from .single_file import size_of

    side = size_of(arguments.checkpoint, arguments.prediction)
    return side, side


def device_of(arguments: argparse.Namespace) -> str:
    """The device that was named, else a GPU of CUDA where there is one."""
    if arguments.device != AUTO:
        return str(arguments.device)
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(arguments: argparse.Namespace) -> torch.dtype:
    """The nets' number type that was named, else fp16 on a GPU of CUDA and fp32 elsewhere."""
    if arguments.dtype != AUTO:
        return TYPES[arguments.dtype]
    return torch.float16 if device_of(arguments).startswith("cuda") else torch.float32


def check_device(name: str) -> None:
    """Raises CldmError for a device that isn't there."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name not in available:
        raise CldmError(f"There is no device {name!r} here: choose {' or '.join(available)}.")


def open_pipeline(arguments: argparse.Namespace) -> Pipeline:
    """The embedded model, or that of a checkpoint."""
    device, dtype = device_of(arguments), dtype_of(arguments)
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


def _controls(arguments: argparse.Namespace, settings: Settings) -> list[Control]:
    if arguments.controlnet is None:
        if arguments.hint:
            raise CldmError(
                "A hint was given without a net: add --controlnet FILE, or embedded:canny."
            )
        return []
    if arguments.hint is None:
        raise CldmError("A ControlNet was given without a hint: add --hint PICTURE.")
    schedule = _schedule(arguments.schedule)
    hint = to_hint(_hint(arguments, settings)).to(device_of(arguments))
    net = open_net(arguments)
    hints = typed(hint, net, arguments)
    return [
        Control(
            net,
            hints,
            strength=arguments.strength,
            start=arguments.start,
            end=arguments.end,
            guess_mode=arguments.guess_mode,
            mode=arguments.mode,
            curve=arguments.curve,
            blocks=_blocks(arguments.blocks, net),
            schedule=schedule,
        )
    ]


def _schedule(text: str | None) -> Schedule | None:
    return None if text is None else Schedule.parse(text)


def _blocks(text: str | None, net: ControlModule) -> tuple[float, ...] | None:
    return None if text is None else parse_blocks(text, len(weights_for(net, "balanced")))


def open_net(arguments: argparse.Namespace) -> ControlModule:
    """The net of a file, or an embedded one.

    Where the file doesn't say whether residuals are averaged, its name does, as in ComfyUI.
    """
    source, _, name = arguments.controlnet.partition(":")
    if source == "embedded" and name not in tiny.CONTROLS:
        known = " or ".join(f"{source}:{control}" for control in tiny.CONTROLS)
        raise CldmError(f"There is no embedded net {name!r}: choose {known}.")
    path = tiny.weights(name) if source == "embedded" else Path(arguments.controlnet)
    checkpoint = read(path)
    net = load_control(checkpoint, device=device_of(arguments), dtype=dtype_of(arguments))
    told = stored_pooling(checkpoint) is not None or not isinstance(net.config, ControlNetConfig)
    if not told and is_named_pooled(path.name):
        net.control_config = replace(net.config, global_average_pooling=True)
        sys.stderr.write(
            f"{path.name}: its name says that it is a shuffle net, so its residuals are averaged "
            f"over the picture.\n"
        )
    return net


def typed(hint: Tensor, net: ControlModule, arguments: argparse.Namespace) -> Hint:
    """The hint under its type where the net wants one."""
    kind = arguments.control_type
    if isinstance(net, UnionControlNet):
        count = net.config.control_types
        if kind is None:
            raise CldmError(
                "This is a union ControlNet: say what the hint is with --control-type, one of "
                f"{', '.join(control_type_names(count)) or f'0 to {count - 1}'}."
            )
        return {control_type_number(int(kind) if kind.isdecimal() else kind, count): hint}
    if kind is not None:
        raise CldmError(
            f"--control-type {kind} was given, but this net knows no types: leave it out."
        )
    return hint


def bind_to_pipeline(control: Control, pipeline: Pipeline) -> Control:
    """The control with its net on the pipeline's UNet, if it builds upon a base model's weights."""
    if not isinstance(control.net, BoundControlNet):
        return control
    return replace(control, net=control.net.bind(pipeline.unet.state_dict()))


def _hint(arguments: argparse.Namespace, settings: Settings) -> Picture:
    picture = middle(read_picture(arguments.hint), settings.width, settings.height)
    return make_hint(arguments.annotator, picture) if arguments.annotator else picture
