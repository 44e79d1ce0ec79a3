"""The command line: a picture, a folder, a video or a data set to hints.

python -m annotators canny in.png out.png --low_threshold 50
python -m annotators canny pictures/ hints/ --format png
python -m annotators canny in.mp4 out.mp4
python -m annotators canny pictures/ shards/ --shards 1000
python -m annotators list
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import ANNOTATORS, Annotator, AnnotatorError, Picture
from . import files as io
from .bar import Bar
from .errors import Unavailable, about, sentence
from .options import LIST, listed, parser
from .settings import complete

PROBE = np.full((64, 64, 3), 128, np.uint8)
MOST_TOLD = 20
"""Of the pictures that have no hint."""
FRAMES_AT_ONCE = 8
"""Of a video, for annotators that are faster with several."""
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    0 if every hint was written, 1 if some of a folder's were not, 2 after one sentence on stderr
    if none could be. Pictures that a data set lacks give 1 only with --strict.
    """
    options = vars(parser().parse_args(arguments))
    name = options.pop("annotator")
    if name == LIST:
        print(listed())
        return 0
    _silence()
    try:
        return _run(ANNOTATORS[name], **options)
    except (AnnotatorError, OSError) as error:
        print(f"{name}: {sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _silence() -> None:
    """OpenCV and FFmpeg log what they can't read; here that is said once and as a sentence."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    # OpenCV 4, else 5.
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)


def _run(
    annotator: Annotator,
    source: Path,
    target: Path,
    mask: Path | None,
    device: str | None,
    format: str | None,
    shards: int | None,
    workers: int,
    strict: bool,
    **settings: Any,
) -> int:
    from .datasets import shards_of

    params: dict[str, Any] = complete(annotator.name, annotator.settings, settings)
    params["device"] = device
    params["mask"] = None if mask is None else io.read_picture(mask)[..., 0]
    if shards or shards_of(source):
        if format is not None:
            raise AnnotatorError("Hints in shards are .png or .npy: leave --format out.")
        params |= {"shard_size": shards, "workers": workers}
        return _dataset(annotator.name, source, target, strict, params)
    if workers or strict:
        raise AnnotatorError("--workers and --strict are for data sets: add --shards 1000.")
    source.stat()  # raises OSError where there is nothing, before the target is judged
    convert = partial(annotator, **params)
    if source.is_dir():
        return _folder(annotator.name, source, target, convert, format)
    if format is not None:
        raise AnnotatorError("--format is for folders: the ending of OUT gives it here.")
    is_video = source.suffix.lower() in io.VIDEOS
    if source.resolve() == target.resolve():
        what = "video" if is_video else "picture"
        raise AnnotatorError(f"{target} is the {what} itself: name another place for the hint.")
    if is_video:
        with Bar(annotator.name) as bar:
            frames = io.frame_count(source)
            at_once = FRAMES_AT_ONCE if annotator.batched else 1
            io.convert_video(source, target, convert, lambda done: bar.show(done, frames), at_once)
        return 0
    io.check_target(target)
    io.write_hint(target, convert(io.read_picture(source)))
    return 0


def _dataset(name: str, source: Path, target: Path, strict: bool, options: dict[str, Any]) -> int:
    """Shards of a data set; the pictures that they lack are told at the end."""
    from .datasets import annotate_dataset

    with Bar(name) as bar:
        failed = annotate_dataset(name, source, target, show=bar.show, **options).failed
    if not failed:
        return 0
    print(f"{name}: {len(failed)} pictures are not in the shards:", file=sys.stderr)
    _list(failed, f", in the files {target}/*.failed.txt")
    return 1 if strict else 0


def _folder(
    name: str,
    source: Path,
    target: Path,
    convert: Callable[..., Picture],
    format: str | None,
) -> int:
    """Every picture of a folder under its own name in the other; what fails is told at the end."""
    if source.resolve() == target.resolve():
        raise AnnotatorError(f"{target} has the pictures themselves: name another folder.")
    if target.is_file():
        raise AnnotatorError(f"{target} is a file: name a folder for the hints of a folder.")
    found = _pictures(source, target)
    places = [target / path.relative_to(source) for path in found]
    if format is not None:
        places = [place.with_suffix(f".{format.lstrip('.')}") for place in places]
    _check(convert, places)
    taken = {path.resolve(): "a picture itself" for path in found}
    failed = []
    with Bar(name) as bar:
        for done, (path, place) in enumerate(zip(found, places, strict=True), start=1):
            try:
                _take(place, path, taken)
                io.write_hint(place, convert(io.read_picture(path)))
            except Unavailable:
                raise
            except (AnnotatorError, OSError) as error:
                failed.append(about(path, error))
            bar.show(done, len(found))
    if failed:
        print(f"{name}: {len(failed)} of {len(found)} pictures failed:", file=sys.stderr)
        _list(failed)
    return 1 if failed else 0


def _list(failed: Sequence[str], others: str = "") -> None:
    """The first sentences, and how many more there are; `others` says where."""
    rest = len(failed) - MOST_TOLD
    more = [f"and {rest} more{others}"] if rest > 0 else []
    print("\n".join([*failed[:MOST_TOLD], *more]), file=sys.stderr)


def _take(place: Path, path: Path, taken: dict[Path, str]) -> None:
    """Makes a place ready for the hint of `path`; raises AnnotatorError where it isn't free."""
    other = taken.get(place.resolve())
    if other is not None:
        raise AnnotatorError(f"{place} is {other}: no place for the hint of {path}.")
    taken[place.resolve()] = f"the hint of {path} already"
    place.parent.mkdir(parents=True, exist_ok=True)
    io.check_target(place)


def _pictures(source: Path, target: Path) -> list[Path]:
    """Those of the folder, without hints of an earlier run; raises AnnotatorError if none is."""
    found = io.pictures_in(source)
    hints = target.resolve()
    if source.resolve() in hints.parents:
        found = [path for path in found if hints not in path.resolve().parents]
    if not found:
        raise AnnotatorError(f"There is no picture in {source}.")
    return found


def _check(convert: Callable[..., Picture], places: list[Path]) -> None:
    """Raises AnnotatorError where no picture can have a hint, or no place can hold one."""
    hint = convert(PROBE, resolution=0)
    refused: dict[str, AnnotatorError] = {}
    endings: dict[str, Path] = {}
    for place in places:
        endings.setdefault(place.suffix, place)
    for ending, place in endings.items():
        try:
            io.check_ending(place)
            io.encoded(ending, hint)
        except AnnotatorError as error:
            refused[ending] = error
    if len(refused) == len(endings):
        raise next(iter(refused.values()))


if __name__ == "__main__":
    raise SystemExit(main())
