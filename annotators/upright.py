"""Which way up a picture is: what a camera or an editor says of that in PNG and WebP files.

OpenCV turns a picture by itself, but not one that keeps its alpha channel, if it has one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from .pictures import Picture

PNG = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
"""The tag of EXIF (CIPA DC-008, 4.6.5) that says it."""
ENTRY = 12
"""Bytes of a tag: its number, type, count and value."""


def says_orientation(file: bytes) -> bool:
    """Whether it is a file of the kinds that `upright` reads."""
    return file.startswith(PNG) or _is_webp(file)


def upright(pixels: Picture, file: bytes) -> Picture:
    """(H, W, C) as it is meant to be seen, by the EXIF data of the file that it was read from."""
    orientation = _orientation(file)
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _orientation(file: bytes) -> int:
    """1 (upright) to 8; 1 too where the file doesn't say it or is damaged."""
    try:
        for name, start, size in _chunks(file):
            if name in (b"eXIf", b"EXIF"):
                return _tag(file[start : start + size].removeprefix(b"Exif\0\0"))
    except struct.error:
        pass
    return 1


def _chunks(file: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk of a PNG or a WebP, and where its content starts and how large it is."""
    if file.startswith(PNG):
        at = len(PNG)
        while at < len(file):
            size, name = struct.unpack_from(">I4s", file, at)
            yield name, at + 8, size
            at += size + 12  # with the checksum
    elif _is_webp(file):
        at = 12
        while at < len(file):
            name, size = struct.unpack_from("<4sI", file, at)
            yield name, at + 8, size
            at += 8 + size + size % 2


def _is_webp(file: bytes) -> bool:
    return file.startswith(b"RIFF") and file[8:12] == b"WEBP"


def _tag(exif: bytes) -> int:
    """The orientation among the tags of the first directory."""
    order = ">" if exif.startswith(b"MM") else "<"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for at in range(start + 2, start + 2 + count * ENTRY, ENTRY):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
        if tag == ORIENTATION:
            return int(value)
    return 1
