"""Picture and video files in, hint files out; what is written is whole or not there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

from .base import RGB8, AnnotatorError, Picture
from .upright import says_orientation, upright

PICTURES = {
    *(".avif", ".bmp", ".dib", ".exr", ".gif", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".ras", ".tif", ".tiff", ".webp"),
}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
CODECS = {".avi": "MJPG", ".webm": "VP80"}
"""The codec for each ending of a video; mp4v for the others."""
RAW = ".npy"
PNG, PNG_END = b"\x89PNG", b"IEND"
JPEG = b"\xff\xd8"
PART = ".part"
"""What the names of unfinished files have before their ending."""
UNFINISHED = re.compile(rf"(?P<stem>.+)\.\d+{re.escape(PART)}(?P<ending>\.[^.]+)")


def read_picture(path: Path | str) -> Picture:
    """See decoded."""
    return decoded(Path(path).read_bytes(), path)


def decoded(data: bytes, name: object) -> Picture:
    """The picture as uint8: (H, W, 4) RGBA if it has an alpha channel, else (H, W, 3) RGB.

    Raises AnnotatorError, with the `name`, where there is none in `data`, or too large a one.
    """
    import cv2

    file = np.frombuffer(data, np.uint8)
    # Of a PNG that breaks off libpng complains on its own.
    is_cut = data.startswith(PNG) and PNG_END not in data
    try:
        pixels = _decoded(file, data) if file.size and not is_cut else None
        if pixels is not None:
            to_rgb = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
            return cv2.cvtColor(pixels, to_rgb)
    except cv2.error as error:
        raise AnnotatorError(
            f"{name} is refused by OpenCV: it has more than 2^30 pixels or 2^20 at a side, or it "
            "is damaged. Make it smaller."
        ) from error
    raise AnnotatorError(f"{name} is no picture that OpenCV can read, or it is damaged.")


def _decoded(file: RGB8, data: bytes) -> Picture | None:
    """(H, W, 4) BGRA or (H, W, 3) BGR, upright; decoded once where that is enough."""
    import cv2

    if not data.startswith(JPEG):  # which has no alpha channel to be lost
        pixels = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            return None
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        if channels == 4:
            return upright(_eight_bits(pixels), data)
        if channels == 3 and pixels.dtype == np.uint8 and says_orientation(data):
            return upright(pixels, data)
    # Only so OpenCV turns a photo upright and brings 16 bits down to 8.
    return cv2.imdecode(file, cv2.IMREAD_COLOR)


def _eight_bits(pixels: Picture) -> Picture:
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def check_ending(path: Path) -> None:
    """Raises AnnotatorError where a hint can't be written by the ending of its name."""
    import cv2

    if path.suffix != RAW and not cv2.haveImageWriter(path.name):
        raise AnnotatorError(f"{path} has no ending of a picture format; use .png, for example.")


def check_target(path: Path) -> None:
    """Raises AnnotatorError where a hint can't be written, before any is made."""
    _check_place(path)
    check_ending(path)


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise AnnotatorError(f"{path} is a folder: name the file that is to be written.")
    if not path.parent.is_dir():
        raise AnnotatorError(f"{path.parent} is not a folder; create it first.")


def write_hint(path: Path | str, hint: Picture) -> None:
    """The hint (H, W, 3) in the format of the file's ending; .npy keeps floats as they are."""
    path = Path(path)
    check_target(path)
    with whole(path) as part:
        part.write_bytes(encoded(path.suffix, hint))


def encoded(ending: str, hint: Picture) -> bytes:
    """The hint (H, W, 3) as a file of that ending (".png") holds it."""
    import cv2

    if ending == RAW:
        with BytesIO() as file:
            np.save(file, hint)
            return file.getvalue()
    with suppress(cv2.error):  # raised by some versions where others give False
        fits, data = cv2.imencode(ending, _bgr(hint, ending))
        if fits:
            return data.tobytes()
    raise AnnotatorError(
        f"A {ending} can't hold {hint.shape[1]} x {hint.shape[0]} pixels in colour; use .png."
    )


def _bgr(hint: Picture, ending: str) -> Picture:
    """The hint as uint8 for OpenCV; refuses negative floats."""
    import cv2

    if hint.dtype != np.uint8:
        if hint.min() < 0:
            raise AnnotatorError(
                f"This hint has values down to {hint.min():g}, which a {ending} can't hold; "
                f"use {RAW}."
            )
        hint = np.rint(hint * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(hint, cv2.COLOR_RGB2BGR))


def pictures_in(folder: Path) -> list[Path]:
    """The files in a folder and its subfolders that have the ending of a picture, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    return sorted(path for path in files if path.is_file())


def convert_video(
    source: Path,
    target: Path,
    convert: Callable[[Picture], Picture],
    show: Callable[[int], None],
    at_once: int = 1,
) -> None:
    """`at_once` frames through `convert` (N, H, W, 3) -> the same, at the same rate.

    `show` is told the number of frames done. Raises AnnotatorError where the video can't be read
    or the format can't be written here.
    """
    import cv2

    _check_place(target)
    if target.suffix.lower() not in VIDEOS:
        raise AnnotatorError(f"{target} has no ending of a video; use .mp4, for example.")
    reader = cv2.VideoCapture(str(source))
    rate = reader.get(cv2.CAP_PROP_FPS) or 25.0
    codec = cv2.VideoWriter.fourcc(*CODECS.get(target.suffix.lower(), "mp4v"))
    writer = None
    frames = _frames(reader)
    done = 0
    try:
        with whole(target) as part:
            while some := list(islice(frames, at_once)):
                hints = convert(np.stack(some))
                if writer is None:
                    writer = cv2.VideoWriter(str(part), codec, rate, hints.shape[2:0:-1])
                    if not writer.isOpened():
                        raise AnnotatorError(
                            f"OpenCV can't write {target.suffix} here; use .avi, for example."
                        )
                for hint in hints:
                    writer.write(_bgr(hint, target.suffix))
                done += len(some)
                show(done)
            if writer is None:
                raise AnnotatorError(f"{source} is no video that OpenCV can read.")
            writer.release()
    finally:
        reader.release()
        if writer is not None:
            writer.release()


def frame_count(path: Path) -> int:
    """How many frames a video says it has; 0 where it doesn't say."""
    import cv2

    reader = cv2.VideoCapture(str(path))
    try:
        return max(0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        reader.release()


def _frames(reader: object) -> Iterator[Picture]:
    import cv2

    while True:
        there, frame = reader.read()  # type: ignore[attr-defined]
        if not there:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@contextmanager
def whole(path: Path, *, lasting: bool = False) -> Iterator[Path]:
    """A temporary name beside the file, with its ending; the file appears when all went well.

    lasting: it is on the disk before it appears, and stays if the machine fails.
    """
    part = path.with_name(f"{path.stem}.{os.getpid()}{PART}{path.suffix}")  # see meant_for
    try:
        yield part
        if lasting:
            _on_disk(part)
        part.replace(path)
        if lasting and os.name != "nt":  # Windows opens no folders
            _on_disk(path.parent)
    finally:
        part.unlink(missing_ok=True)


def meant_for(part: str) -> str | None:
    """The name of the file that one of this name was to become; None for any other name."""
    found = UNFINISHED.fullmatch(part)
    return found["stem"] + found["ending"] if found else None


def _on_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
