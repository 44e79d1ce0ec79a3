"""The pictures of the embedded model: Fluent Emoji 3D on white, captioned from emojilib."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CldmError

SIZE = 128
HELD_OUT = 64
SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
REGIONAL_INDICATORS = frozenset(range(0x1F1E6, 0x1F200))
# Unicode's category "Flags", whose pictures come from another artist's set: two regional letters,
# or one of these first.
FLAG_STARTS = frozenset({0x1F38C, 0x1F3C1, 0x1F3F3, 0x1F3F4, 0x1F6A9})
VARIATION_SELECTOR = "\ufe0f"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Emoji:
    """One picture: its file's stem, its name and keywords, and its pixels.

    rgba: (128, 128, 4) float32 in [0, 1], premultiplied.
    """

    stem: str
    words: tuple[str, ...]
    rgba: Array

    @property
    def caption(self) -> str:
        """The name alone, as a user would prompt for it."""
        return self.words[0]


def _keywords(archive: Path) -> dict[str, tuple[str, ...]]:
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/dist/emoji-en-US.json")
        if member is None:
            raise CldmError(
                f"{archive} is not the npm package emojilib: it holds no emoji-en-US.json."
            )
        table = json.load(member)
    return {
        key.replace(VARIATION_SELECTOR, ""): tuple(word.replace("_", " ") for word in words)
        for key, words in table.items()
    }


def _wanted(codes: Sequence[int]) -> bool:
    """Leaves out skin tones (near duplicates) and flags."""
    return not (
        SKIN_TONES & set(codes) or REGIONAL_INDICATORS & set(codes) or codes[0] in FLAG_STARTS
    )


def load_emoji(pictures: Path, keywords: Path) -> list[Emoji]:
    """All pictures that have a caption, sorted by file name.

    pictures: the npm package @lobehub/fluent-emoji-3d 1.1.0 as a .tgz; keywords: emojilib 4.0.3 as
    a .tgz.
    """
    import cv2

    words = _keywords(keywords)
    found = []
    with tarfile.open(pictures) as tar:
        for member in tar:
            path = Path(member.name)
            if path.suffix != ".webp":
                continue
            codes = [int(code, 16) for code in path.stem.replace("_", "-").split("-")]
            text = "".join(map(chr, codes)).replace(VARIATION_SELECTOR, "")
            handle = tar.extractfile(member)
            if handle is None or text not in words or not _wanted(codes):
                continue
            bgra = cv2.imdecode(np.frombuffer(handle.read(), np.uint8), cv2.IMREAD_UNCHANGED)
            if bgra is None:
                raise CldmError(f"{member.name} in {pictures} can't be read as a picture.")
            rgba = bgra[:256, :256, [2, 1, 0, 3]].astype(np.float32) / 255
            rgba[..., :3] *= rgba[..., 3:]
            # Area averaging here, and a smooth placement in `render`: warping straight from 256
            # would alias.
            small = cv2.resize(rgba, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            found.append(Emoji(path.stem, words[text], small))
    if not found:
        raise CldmError(
            f"{pictures} holds no usable picture: expected the npm package "
            f"@lobehub/fluent-emoji-3d."
        )
    return sorted(found, key=lambda emoji: emoji.stem)


def split(pictures: Sequence[Emoji]) -> tuple[list[Emoji], list[Emoji]]:
    """The pictures to train on, and those to hold out.

    Held out are those with the smallest digests of their names: the choice is blind and stable.
    """
    order = sorted(pictures, key=lambda emoji: hashlib.sha256(emoji.stem.encode()).hexdigest())
    held = {emoji.stem for emoji in order[:HELD_OUT]}
    return [e for e in pictures if e.stem not in held], [e for e in pictures if e.stem in held]


def render(emoji: Emoji, matrix: Array | None = None) -> tuple[Array, Array]:
    """The picture (128, 128, 3) on white and its foreground (128, 128), float32 in [0, 1].

    matrix: where it is placed, (2, 3), see `placement`.
    """
    import cv2

    if matrix is None:
        matrix = placement()
    placed = cv2.warpAffine(emoji.rgba, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
    return placed[..., :3] + (1 - placed[..., 3:]), placed[..., 3]


def placement(
    *,
    scale: float = 1.0,
    degrees: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Array:
    """The affine matrix (2, 3) about the picture's middle; shift in pixels."""
    middle = (SIZE - 1) / 2
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if flip:
        turn = turn @ np.diag([-1.0, 1.0])
    offset = np.full(2, middle) - turn @ np.full(2, middle) + np.array(shift)
    return np.hstack([turn, offset[:, None]]).astype(np.float32)


def random_placement(rng: np.random.Generator, *, low: float = 0.75, high: float = 1.05) -> Array:
    """A random flip, size, turn (10 degrees) and shift (8 pixels)."""
    return placement(
        scale=rng.uniform(low, high),
        degrees=rng.uniform(-10, 10),
        shift=(rng.uniform(-8, 8), rng.uniform(-8, 8)),
        flip=bool(rng.integers(2)),
    )


def random_caption(emoji: Emoji, rng: np.random.Generator) -> str:
    """The name with up to three of its keywords, in random order after the name."""
    extra = [word for word in emoji.words[1:] if word.isascii()]
    count = min(len(extra), int(rng.integers(0, 4)))
    return ", ".join([emoji.caption, *(extra[i] for i in rng.permutation(len(extra))[:count])])
