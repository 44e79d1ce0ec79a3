"""The command line: `python -m cldm_core --help`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import file_commands
from .errors import CldmError
from .modes import AUTO, CURVES, MODES
from .pipeline import SCHEDULERS
from .training import command as training_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; an error of the core is one sentence on standard error and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may have letters that the terminal, or a file on Windows, doesn't.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser()
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        return run(arguments) or 0
    except (CldmError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cldm_core",
        description="ControlNet without a host: make pictures, train nets, look into files and "
        "change them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_sample(commands)
    _add_generate(commands)
    file_commands.add_parsers(commands)
    training_command.add_parser(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="a picture, its hint, and what the embedded model makes of both",
        description="Makes an edge map of a picture and lets the embedded model draw with and "
        "without it, side by side.",
    )
    demo.add_argument(
        "--picture", type=Path, help="your own picture (default: one that comes with the pack)"
    )
    demo.add_argument("--prompt", help="what to draw (default: what the pack's picture shows)")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("output/demo.png"),
        help="where the result goes (%(default)s)",
    )
    demo.add_argument(
        "--seed", type=int, default=7, help="another number, another picture (%(default)s)"
    )
    demo.set_defaults(run=_demo)


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser(
        "sample",
        help="pictures from text and a hint",
        description="Samples pictures with the embedded model, or with a Stable Diffusion "
        "1.5, 2.1 or SDXL checkpoint.",
    )
    sample.add_argument("prompt", help='what the picture should show; "" is allowed')
    sample.add_argument(
        "out", type=Path, help="file of the picture; several get numbers before the ending"
    )
    _add_nets(sample)
    sample.add_argument(
        "--hint", type=Path, help="the hint, or the picture that --annotator makes it of"
    )
    sample.add_argument(
        "--start",
        type=float,
        default=0.0,
        help="share of the steps at which control begins (%(default)s)",
    )
    sample.add_argument(
        "--end",
        type=float,
        default=1.0,
        help="share of the steps before which control ends (%(default)s)",
    )
    sample.add_argument(
        "--guess-mode",
        action="store_true",
        help="weak early blocks, no control on the negative side",
    )
    sample.add_argument(
        "--mode",
        choices=MODES,
        default="balanced",
        help="prompt: my prompt is more important; control: ControlNet is more important "
        "(%(default)s)",
    )
    sample.add_argument(
        "--curve", choices=(AUTO, *CURVES), default=AUTO, help="the weights of modes (%(default)s)"
    )
    sample.add_argument(
        "--blocks",
        metavar="TEXT",
        help='weights of the blocks in place of the mode\'s, such as "0-3: 0.5, middle: 1" or '
        '"only middle"',
    )
    sample.add_argument(
        "--schedule", metavar="TEXT", help='strength over the steps, such as "0: 1, 0.6: 1, 1: 0"'
    )
    sample.add_argument(
        "--count", type=int, default=1, help="how many pictures, with seeds one apart (%(default)s)"
    )
    sample.set_defaults(run=_sample)


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser(
        "generate",
        help="pictures for hints, as pairs to train on",
        description="Draws a picture for each hint and prompt of a data set, with the embedded "
        "model and its net for edges or with a checkpoint and a --controlnet, and writes pictures, "
        "hints and prompts as pairs that `train` and the trainers of diffusers and of the original "
        "read. Run again, it goes on where it was.",
    )
    generate.add_argument(
        "data",
        type=Path,
        help="a folder of hints with captions, or of pictures with --annotator; a prompt.json, a "
        "Hugging Face image folder or a .tar of pairs, whose hints are taken",
    )
    generate.add_argument("out", type=Path, help="folder of the pairs")
    generate.add_argument("--prompt", help="for all hints (default: the caption of each)")
    generate.add_argument(
        "--copies", type=int, default=1, help="pictures for each hint (%(default)s)"
    )
    _add_nets(generate)
    generate.set_defaults(run=_generate, controlnet="embedded:canny")


def _add_nets(parser: argparse.ArgumentParser) -> None:
    """What is sampled with, and how."""
    parser.add_argument("--negative", default="", help="what the picture should not show")
    parser.add_argument(
        "--checkpoint", type=Path, help="a single-file checkpoint (default: the embedded model)"
    )
    parser.add_argument(
        "--prediction",
        choices=("eps", "v"),
        help="what the checkpoint predicts; v for SD 2.1 at 768 (default: what the checkpoint "
        "says, eps if it says nothing)",
    )
    parser.add_argument(
        "--tokenizer",
        help="folder with CLIP's vocab.json and merges.txt, or a hub name (with --checkpoint)",
    )
    parser.add_argument(
        "--controlnet", help="a control net's file, or embedded:canny, embedded:mask"
    )
    parser.add_argument(
        "--control-type",
        metavar="TYPE",
        help="what the hint shows, for a union ControlNet: openpose, depth, scribble, canny, ...",
    )
    parser.add_argument(
        "--annotator", help="MODULE:FUNCTION from picture to hint, such as annotators:canny"
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        help="how strongly the hint is followed (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (%(default)s)")
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance (default: 3 embedded, 7.5 else)"
    )
    parser.add_argument(
        "--scheduler",
        choices=tuple(SCHEDULERS),
        default="ddim",
        help="how the steps are taken (%(default)s)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="SIZE",
        help="of the picture in pixels, 512 or 768x512, width first; a hint is cut to it (default: "
        "the model's own, 128 embedded, 1024 SDXL, 768 SD 2.1 with v, else 512)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the first picture's seed (%(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, mps; auto is cuda where it is there"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        default="auto",
        help="number type of the nets; auto is fp16 on cuda, else fp32",
    )


def _size(text: str) -> tuple[int, int]:
    """Width and height of "512" or "768x512"."""
    width, times, height = text.lower().partition("x")
    try:
        return int(width), int(height if times else width)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give 512 or 768x512") from error


def _demo(arguments: argparse.Namespace) -> None:
    from .commands import demo

    demo(arguments.picture, arguments.prompt, arguments.out, arguments.seed)


def _sample(arguments: argparse.Namespace) -> None:
    from .commands import sample

    sample(arguments)


def _generate(arguments: argparse.Namespace) -> None:
    from .generate_command import generate

    generate(arguments)


if __name__ == "__main__":
    sys.exit(main())
