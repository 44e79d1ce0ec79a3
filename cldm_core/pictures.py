"""Pictures from and to files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import CldmError
from .whole_files import whole_file

if TYPE_CHECKING:
    from .pipeline import Picture


def read_picture(path: Path, *, alpha: bool = False) -> Picture:
    """The file as (H, W, 3) uint8 RGB.

    Transparency is laid on white, or kept as (H, W, 4) with `alpha`. Raises CldmError where there
    is no file, or no picture in it.
    """
    if not path.is_file():
        raise CldmError(f"There is no picture {path}: check the name and the folder.")
    # Not cv2.imread: it can't open paths with letters that the system's code page lacks.
    return decode_picture(path.read_bytes(), str(path), alpha=alpha)


def decode_picture(stored: bytes, name: str, *, alpha: bool = False) -> Picture:
    """What a picture's file holds, as read_picture gives it; `name` is what a message calls it."""
    import cv2

    file = np.frombuffer(stored, np.uint8)
    # A photo (JPEG, which has no transparency) is turned as its EXIF says; the other way isn't.
    photo = stored.startswith(b"\xff\xd8")
    kind = cv2.IMREAD_COLOR if photo else cv2.IMREAD_UNCHANGED
    try:
        data = cv2.imdecode(file, kind) if file.size else None
    except cv2.error:  # larger than OpenCV reads
        data = None
    if data is None or data.dtype not in (np.uint8, np.uint16):
        raise CldmError(
            f"{name} can't be read as a picture: it is damaged or of an unknown kind. "
            "Use PNG, JPEG or WebP."
        )
    if data.dtype == np.uint16:
        data = (data / 257).round().astype(np.uint8)
    if data.ndim == 2:
        data = np.repeat(data[..., None], 3, axis=-1)
    order = cv2.COLOR_BGRA2RGBA if data.shape[-1] == 4 else cv2.COLOR_BGR2RGB
    data = cv2.cvtColor(data, order)
    if data.shape[-1] == 4 and not alpha:
        share = data[..., 3:] / 255
        data = (data[..., :3] * share + 255 * (1 - share)).round().astype(np.uint8)
    return np.asarray(data, dtype=np.uint8)


def write_picture(picture: Picture, path: Path) -> None:
    """Writes (H, W, 3) uint8 RGB; the kind of file follows the ending.

    The file is whole or not there; missing folders are made. Raises CldmError where OpenCV can't
    write that kind.
    """
    data = _encode(picture, path)
    with whole_file(path) as part:
        part.write_bytes(data)


def check_writable(path: Path) -> None:
    """Raises CldmError where write_picture could not write `path`; leaves nothing behind."""
    _encode(np.zeros((8, 8, 3), np.uint8), path)
    try:
        if path.is_dir():
            raise CldmError(f"{path} is a folder: give the name of a file.")
        # The folders between this one and the file are made by write_picture.
        folder = next(parent for parent in path.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CldmError(
            f"{path} can't be written ({error.strerror}): choose another folder or name."
        ) from error


def _encode(picture: Picture, path: Path) -> bytes:
    import cv2

    # imencode raises where no writer knows the ending.
    if cv2.haveImageWriter(path.name):
        done, data = cv2.imencode(path.suffix, picture[..., ::-1])
        if done:
            return data.tobytes()
    raise CldmError(
        f"The picture can't be written as {path.name!r}: let the name end in .png, .jpg or .webp."
    )


def middle(picture: Picture, width: int, height: int) -> Picture:
    """The largest middle part with the aspect of width x height, scaled to that."""
    import cv2

    rows, columns = picture.shape[:2]
    scale = min(rows / height, columns / width)
    high, wide = (max(1, round(side * scale)) for side in (height, width))
    top, left = (rows - high) // 2, (columns - wide) // 2
    cut = picture[top : top + high, left : left + wide]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(cut, (width, height), interpolation=method), dtype=np.uint8)


def side_by_side(pictures: Sequence[Picture], titles: Sequence[str], *, scale: int = 2) -> Picture:
    """Pictures of one size in a row, enlarged, with a title above each."""
    import cv2

    height, width = (scale * side for side in pictures[0].shape[:2])
    margin, head = 12, 34
    sheet = np.full(
        (height + head + margin, (width + margin) * len(pictures) + margin, 3), 255, np.uint8
    )
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = margin + index * (width + margin)
        enlarged = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
        sheet[head : head + height, left : left + width] = enlarged
        cv2.putText(
            sheet, title, (left, 23), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA
        )
    return sheet
