"""`python -m annotators canny in.png out.png --low_threshold 50`: a picture file to a hint file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from . import ANNOTATORS, AnnotatorError, Picture


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if the hint was written, 2 after one sentence on stderr if not."""
    options = vars(_parser().parse_args(arguments))
    name, source, target = options.pop("annotator"), options.pop("picture"), options.pop("hint")
    import cv2

    # OpenCV logs what it can't read; that is said below, once and as a sentence.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        _write(target, ANNOTATORS[name](_read(source), **options))
    except AnnotatorError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{name}: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        return 0
    return 2


def _parser() -> argparse.ArgumentParser:
    """One subcommand for each annotator, one option for each of its parameters."""
    parser = argparse.ArgumentParser(
        prog="python -m annotators", description="Make the hint of a ControlNet from a picture."
    )
    commands = parser.add_subparsers(
        dest="annotator", metavar="annotator", required=True, title="annotators"
    )
    for annotator in ANNOTATORS.values():
        command = commands.add_parser(
            annotator.name, help=annotator.title, description=annotator.description
        )
        command.add_argument("picture", type=Path, help="file to read (PNG, JPEG, WebP, ...)")
        command.add_argument("hint", type=Path, help="file to write; its ending gives the format")
        for name, param in annotator.params.items():
            command.add_argument(
                f"--{name}",
                type=int,
                metavar="N",
                default=param.default,
                help=f"{param.help} ({param.min} to {param.max}, default {param.default})",
            )
    return parser


def _read(path: Path) -> Picture:
    """The picture as uint8: (H, W, 4) RGBA if it has an alpha channel, else (H, W, 3) RGB."""
    import cv2

    file = np.frombuffer(path.read_bytes(), np.uint8)
    pixels = cv2.imdecode(file, cv2.IMREAD_UNCHANGED) if file.size else None
    if pixels is not None and pixels.ndim == 3 and pixels.shape[2] == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    # Decoded again, since only so OpenCV turns a photograph upright and brings 16 bits down to 8.
    pixels = cv2.imdecode(file, cv2.IMREAD_COLOR) if pixels is not None else None
    if pixels is None:
        raise AnnotatorError(f"{path} is no picture that OpenCV can read, or it is damaged.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _write(path: Path, hint: Picture) -> None:
    """Written under a temporary name and then renamed, so that a file is whole or not there."""
    import cv2

    if not cv2.haveImageWriter(path.name):
        raise AnnotatorError(f"{path} has no ending of a picture format; use .png, for example.")
    if not path.parent.is_dir():
        raise AnnotatorError(f"{path.parent} is not a folder; create it first.")
    fits, encoded = cv2.imencode(path.suffix, cv2.cvtColor(hint, cv2.COLOR_RGB2BGR))
    if not fits:
        raise AnnotatorError(
            f"A {path.suffix} can't hold {hint.shape[1]} x {hint.shape[0]} pixels; use .png."
        )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(encoded.tobytes())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
