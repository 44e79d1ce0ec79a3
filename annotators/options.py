"""The command line's options: one subcommand for each annotator, made from its record."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from . import ANNOTATORS, Annotator
from .settings import Choice, Param, Setting

LIST = "list"


def listed() -> str:
    """All annotators, each with what it makes."""
    width = max(map(len, ANNOTATORS))
    return "\n".join(f"{one.name:{width}}  {one.about}" for one in ANNOTATORS.values())


def parser() -> argparse.ArgumentParser:
    """`annotator` is the subcommand, `source` and `target` its paths."""
    made = argparse.ArgumentParser(
        prog="python -m annotators", description="Make the hints of a ControlNet from pictures."
    )
    help_ = "all annotators, each with what it makes"
    made.add_argument("--list", action=_List, nargs=0, default=argparse.SUPPRESS, help=help_)
    commands = made.add_subparsers(
        dest="annotator", metavar="annotator", required=True, title="annotators"
    )
    commands.add_parser(LIST, help=help_)
    for annotator in ANNOTATORS.values():
        _add(commands, annotator)
    return made


class _List(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        sys.stdout.write(f"{listed()}\n")
        parser.exit()


def _add(commands: Any, annotator: Annotator) -> None:
    command = commands.add_parser(
        annotator.name, help=annotator.title, description=annotator.about.replace("%", "%%")
    )
    command.add_argument(
        "source",
        metavar="in",
        type=Path,
        help="picture (PNG, JPEG, WebP, ...), folder of pictures, video, or webdataset shards "
        '(.tar, a folder of them, or "{000..099}.tar")',
    )
    command.add_argument(
        "target",
        metavar="out",
        type=Path,
        help="picture, folder or video to write, or the folder for shards; a picture's ending "
        "gives the format",
    )
    command.add_argument("--format", metavar="ENDING", help="of the files in a folder: png")
    command.add_argument("--mask", type=Path, metavar="FILE", help=_mask_help(annotator))
    command.add_argument("--device", help=_device_help(annotator))
    shards = command.add_argument_group("data sets")
    shards.add_argument(
        "--shards",
        type=_count,
        metavar="N",
        help="write webdataset shards of N pictures each, with their hints and captions",
    )
    shards.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="make N shards at once, through Ray"
    )
    shards.add_argument(
        "--strict", action="store_true", help="exit with 1 if pictures were left out of the shards"
    )
    settings = command.add_argument_group("settings")
    for name, setting in annotator.settings.items():
        option = _option(setting)
        settings.add_argument(f"--{name}", **option)
        for other in setting.also:
            settings.add_argument(f"--{other}", **{**option, "help": argparse.SUPPRESS})


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}, but it has to be at least 1.")
    return number


def _mask_help(annotator: Annotator) -> str:
    return "picture, white where to act" if annotator.needs_mask else argparse.SUPPRESS


def _device_help(annotator: Annotator) -> str:
    if not annotator.weights:
        return argparse.SUPPRESS
    return "cuda, cpu and so on; the fastest unless given"


def _option(setting: Setting) -> dict[str, Any]:
    """How argparse takes the setting, where it is given; its range is checked by the annotator."""
    scope, default = "", str(setting.default)
    option: dict[str, Any] = {"default": argparse.SUPPRESS}
    if isinstance(setting, Param):
        scope = f"{setting.min} to {setting.max}, "
        option |= {"type": int if setting.whole else float, "metavar": "N"}
    elif isinstance(setting, Choice):
        option["choices"] = setting.choices
    else:
        default = "on" if setting.default else "off"
        option["action"] = argparse.BooleanOptionalAction
    others = ", ".join(f"--{other}" for other in setting.also)
    about = f"{setting.help} ({scope}default {default}{others and f'; also {others}'})"
    return {**option, "help": about.replace("%", "%%")}
