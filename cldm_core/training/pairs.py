"""Pairs of a target and its hint with a prompt; their pictures are read when they are needed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ..errors import CldmError
from ..pictures import decode_picture
from ..pipeline import Picture

Size = tuple[int, int]
"""Height and width, in pixels."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Of files that are taken for pictures."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


class Stored(Protocol):
    """A picture that lies somewhere and is read late. Every method raises CldmError."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""

    def exists(self) -> bool:
        """Whether there is anything to read."""

    def stamp(self) -> str:
        """A text that is another one once the picture has changed."""

    def size(self) -> Size:
        """Height and width, from the first bytes where the file's kind allows it."""

    def data(self) -> bytes:
        """What is stored, as it is."""

    def read(self, *, alpha: bool = False) -> Picture:
        """(H, W, 3) uint8 RGB, transparency on white; or (H, W, 4) with `alpha`, if there is."""


@dataclass(frozen=True)
class Pair:
    """One picture to learn, the hint that leads to it (None: made from the target), its prompt.

    where: the file and line that name the pair, for messages; "" where the name says enough.
    """

    name: str
    prompt: str
    target: Stored
    hint: Stored | None = None
    where: str = ""

    def read_target(self) -> Picture:
        """(H, W, 3) uint8 RGB; raises CldmError that says where the pair is written."""
        return self._read(self.target)

    def read_hint(self) -> Picture:
        """(H, W, 3) uint8 RGB; raises CldmError that says where the pair is written."""
        if self.hint is None:
            raise CldmError(
                f"{self.named} has no hint: give the hints, or a function that makes them from the "
                "targets."
            )
        return self._read(self.hint)

    @property
    def named(self) -> str:
        """What to call the pair in a sentence."""
        return f"The pair {self.name} ({self.where})" if self.where else f"The pair {self.name}"

    def _read(self, picture: Stored) -> Picture:
        try:
            return picture.read()
        except CldmError as error:
            raise CldmError(f"{self.named} can't be read. {error}") from error


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        # Not Path.is_file, which raises for a name that is too long.
        return os.path.isfile(self.path)

    def stamp(self) -> str:
        try:
            found = self.path.stat()
        except (OSError, ValueError) as error:
            raise missing(self.path, error) from error
        return f"{self.path.absolute()}|{found.st_mtime_ns}|{found.st_size}"

    def size(self) -> Size:
        self._check()
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - what is raised below isn't caught here
        except (OSError, ValueError) as error:
            raise missing(self.path, error) from error
        with file:
            return picture_size(file, self.name)

    def data(self) -> bytes:
        self._check()
        try:
            return self.path.read_bytes()
        except (OSError, ValueError) as error:
            raise missing(self.path, error) from error

    def _check(self) -> None:
        """Raises CldmError for what has no end, as devices, or may never come, as pipes."""
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise CldmError(f"{self.path} can't be read: it is no file.")

    def read(self, *, alpha: bool = False) -> Picture:
        return decode_picture(self.data(), self.name, alpha=alpha)


@dataclass(frozen=True)
class MemberPicture:
    """A picture inside a shard: `length` bytes from `offset` on."""

    shard: Path
    member: str
    offset: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.member} in {self.shard}"

    def exists(self) -> bool:
        return self.shard.is_file()

    def stamp(self) -> str:
        return f"{FilePicture(self.shard).stamp()}|{self.offset}|{self.length}"

    def size(self) -> Size:
        return picture_size(io.BytesIO(self.data()), self.name)

    def data(self) -> bytes:
        return read_range(self.shard, self.offset, self.length)

    def read(self, *, alpha: bool = False) -> Picture:
        return decode_picture(self.data(), self.name, alpha=alpha)


@dataclass(frozen=True)
class DrawnPicture:
    """A picture that a function draws; `key` names what it draws, parameters and all."""

    name: str
    draw: Callable[[], Picture]
    key: str
    shape: Size

    def exists(self) -> bool:
        return True

    def stamp(self) -> str:
        return self.key

    def size(self) -> Size:
        return self.shape

    def data(self) -> bytes:
        return self.draw().tobytes()

    def read(self, *, alpha: bool = False) -> Picture:
        return self.draw()


def held_picture(picture: Picture, name: str) -> DrawnPicture:
    """A picture (H, W, 3), uint8 RGB, that is in memory already."""
    digest = hashlib.sha256(picture.tobytes()).hexdigest()
    height, width = picture.shape[:2]
    return DrawnPicture(name, picture.copy, f"{digest}|{height}x{width}", (height, width))


def picture_size(file: IO[bytes], name: str) -> Size:
    """Height and width from a picture's first bytes, as it is seen (EXIF turns photos)."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            width, height = picture.size
            # As decode_picture does: only photos are turned.
            turned = picture.format == "JPEG" and picture.getexif().get(0x0112) in _TURNED
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CldmError(
            f"{name} can't be read as a picture: it is damaged or of an unknown kind. Use PNG, "
            "JPEG or WebP."
        ) from error
    return (width, height) if turned else (height, width)


def read_range(path: Path, offset: int, length: int) -> bytes:
    """So many bytes of a file; raises CldmError where it is missing, or shorter than that."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise missing(path, error) from error
    if len(data) < length:
        raise CldmError(
            f"{path} has become shorter since it was opened: start again with the whole file."
        )
    return data


def missing(path: Path, error: OSError | ValueError) -> CldmError:
    """What to raise where a file can't be opened; ValueError: it has an impossible name."""
    if isinstance(error, FileNotFoundError):
        return CldmError(f"There is no file {path}: was it moved or deleted?")
    return CldmError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.")
