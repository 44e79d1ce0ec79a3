"""The command line: a picture, a folder of pictures or a video to hints.

python -m annotators canny in.png out.png --low_threshold 50
python -m annotators canny pictures/ hints/ --format png
python -m annotators canny in.mp4 out.mp4
python -m annotators list
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import ANNOTATORS, Annotator, AnnotatorError, Picture
from . import files as io
from .settings import Choice, Flag, Param, Setting

LIST = "list"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    0 if every hint was written, 1 if some of a folder's were not, 2 after one sentence on stderr
    if none could be.
    """
    options = vars(_parser().parse_args(arguments))
    name = options.pop("annotator")
    if name == LIST:
        print(_listed())
        return 0
    import cv2

    # OpenCV logs what it can't read; that is said below, once and as a sentence.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return _run(ANNOTATORS[name], **options)
    except (AnnotatorError, OSError) as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
        return 2


def _run(
    annotator: Annotator,
    source: Path,
    target: Path,
    mask: Path | None,
    device: str | None,
    format: str | None,
    **params: Any,
) -> int:
    extra: dict[str, Any] = {**params, "device": device}
    if mask is not None:
        extra["mask"] = io.read_picture(mask)[..., 0]

    def convert(image: Picture) -> Picture:
        return annotator(image, **extra)

    if source.is_dir():
        return _folder(annotator.name, source, target, convert, format)
    if source.suffix.lower() in io.VIDEOS:
        with _Bar(annotator.name, io.frame_count(source)) as bar:
            io.convert_video(source, target, convert, bar.show)
    else:
        io.write_hint(target, convert(io.read_picture(source)))
    return 0


def _folder(
    name: str,
    source: Path,
    target: Path,
    convert: Callable[[Picture], Picture],
    format: str | None,
) -> int:
    """Every picture of a folder under its own name in the other; what fails is told at the end."""
    found = io.pictures_in(source)
    if not found:
        raise AnnotatorError(f"There is no picture in {source}.")
    failed = []
    with _Bar(name, len(found)) as bar:
        for done, path in enumerate(found, start=1):
            place = target / path.relative_to(source)
            if format is not None:
                place = place.with_suffix(f".{format.lstrip('.')}")
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                io.write_hint(place, convert(io.read_picture(path)))
            except (AnnotatorError, OSError) as error:
                failed.append(_sentence(error))
            bar.show(done)
    if failed:
        print(f"{name}: {len(failed)} of {len(found)} pictures failed:", file=sys.stderr)
        print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


class _Bar:
    """Progress on stderr where that is a terminal: tqdm's if it is installed, else a line."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._shown = sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        if self._shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self._bar = tqdm(total=self._total or None, desc=self._name)
        return self

    def show(self, done: int) -> None:
        """`done` of the total are done."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif self._shown:
            print(f"\r{self._name}: {done} of {self._total or '?'}", end="", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown:
            print(file=sys.stderr)


def _listed() -> str:
    """All annotators, each with what it makes."""
    width = max(map(len, ANNOTATORS))
    return "\n".join(f"{one.name:{width}}  {one.about}" for one in ANNOTATORS.values())


def _parser() -> argparse.ArgumentParser:
    """One subcommand for each annotator, one option for each of its settings."""
    parser = argparse.ArgumentParser(
        prog="python -m annotators", description="Make the hints of a ControlNet from pictures."
    )
    commands = parser.add_subparsers(
        dest="annotator", metavar="annotator", required=True, title="annotators"
    )
    commands.add_parser(LIST, help="all annotators, each with what it makes")
    for annotator in ANNOTATORS.values():
        command = commands.add_parser(
            annotator.name, help=annotator.title, description=annotator.about.replace("%", "%%")
        )
        command.add_argument(
            "source",
            metavar="in",
            type=Path,
            help="picture (PNG, JPEG, WebP, ...), folder of pictures, or video",
        )
        command.add_argument(
            "target",
            metavar="out",
            type=Path,
            help="picture, folder or video to write; its ending gives the format",
        )
        command.add_argument("--format", metavar="ENDING", help="of the files in a folder: png")
        command.add_argument("--mask", type=Path, metavar="FILE", help=_mask_help(annotator))
        command.add_argument("--device", help=_device_help(annotator))
        for name, setting in annotator.settings.items():
            command.add_argument(f"--{name}", **_option(setting))
    return parser


def _mask_help(annotator: Annotator) -> str:
    return "picture, white where to act" if annotator.needs_mask else argparse.SUPPRESS


def _device_help(annotator: Annotator) -> str:
    return (
        "cuda, cpu and so on; the fastest unless given"
        if annotator.weights
        else (argparse.SUPPRESS)
    )


def _option(setting: Setting) -> dict[str, Any]:
    """How argparse takes the setting; ranges are checked by the annotator."""
    about = setting.help.replace("%", "%%")
    if isinstance(setting, Param):
        help_ = f"{about} ({setting.min} to {setting.max}, default {setting.default})"
        kind = int if setting.whole else float
        return {"type": kind, "metavar": "N", "default": setting.default, "help": help_}
    help_ = f"{about} (default {setting.default})"
    if isinstance(setting, Choice):
        return {"choices": setting.choices, "default": setting.default, "help": help_}
    assert isinstance(setting, Flag)
    action = argparse.BooleanOptionalAction
    return {"action": action, "default": setting.default, "help": about}


if __name__ == "__main__":
    raise SystemExit(main())
