"""One pair, looked at closely: what the doctor sees in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import CldmError
from ..pipeline import Picture
from .buckets import nearest_bucket
from .made_hints import Maker, make_hint
from .pairs import Pair, Size, Stored
from .sources import Source
from .views import ASPECTS_DIFFER, View, stretch

STRETCHED = 0.01
CUT = 0.4
GREY = 8
"""Colours of a pixel that are nearer to each other count as grey."""
NEAR = 8
"""Pixels that are nearer to the median count as of one colour."""
DRAWN = 0.0005
"""A hint of which less than this share is drawn says nothing."""
DIM = 64
MIDDLE = range(120, 136)
PAPER, INK = 240, 128
"""Brightness of paper, at least, and of ink, at most."""
PAPER_SHARE = 0.7
LINE_SHARE = 0.15
"""Of lines no more than this share is left when three pixels are taken from each side."""
SAMPLE = 256
OUTLINE = 32
"""Outlines are compared at this many pixels."""


@dataclass(frozen=True)
class Look:
    """Kinds of findings, each with a sentence or ""; what else the doctor compares.

    digests: of target and hint, 0 where there is none; outlines: of both, or None.
    """

    name: str
    findings: tuple[tuple[str, str], ...]
    digests: tuple[int, int] = (0, 0)
    size: Size | None = None
    outlines: tuple[np.ndarray, np.ndarray] | None = None


def look_at(
    source: Source, index: int, sizes: Sequence[Size], maker: Maker | None, *, outlines: bool = True
) -> Look:
    """What can be said about one pair; never raises for what is wrong with the data."""
    try:
        pair = source[index]
    except CldmError as error:
        return Look(f"number {index}", (("record", str(error)),))
    findings = [] if pair.prompt.strip() else [("no caption", "")]
    target = _read(pair, pair.target, findings)
    hint = _hint(pair, target, maker, findings)
    if target is not None:
        findings += [(kind, "") for kind in _of_target(target, sizes)]
    if hint is not None:
        findings += [(kind, "") for kind in _of_hint(hint)]
    if target is None or hint is None:
        return Look(pair.name, _once(findings), (_digest(target), _digest(hint)))
    size = (target.shape[0], target.shape[1])
    findings += _of_both(size, (hint.shape[0], hint.shape[1]))
    digests = _digest(target), _digest(hint)
    if digests[0] == digests[1]:
        findings.append(("hint is target", ""))
    both = (_outline(target), _outline(hint)) if outlines else None
    return Look(pair.name, _once(findings), digests, size, both)


def _once(findings: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """One finding of a kind is enough for a pair."""
    return tuple({kind: (kind, detail) for kind, detail in reversed(findings)}.values())


def _read(pair: Pair, stored: Stored, findings: list[tuple[str, str]]) -> Picture | None:
    """The picture (H, W, 3) on white; None, and a finding, where it can't be read."""
    if not stored.exists():
        where = f", named in {pair.where}" if pair.where else ""
        findings.append(("missing", f"there is no {stored.name}{where}."))
        return None
    try:
        picture = stored.read(alpha=True)
        if picture.shape[-1] == 4:
            if (picture[..., 3] < 255).any():
                findings.append(("transparent", ""))
            picture = stored.read()
        return picture
    except CldmError as error:
        findings.append(("damaged", str(error)))
        return None


def _hint(
    pair: Pair, target: Picture | None, maker: Maker | None, findings: list[tuple[str, str]]
) -> Picture | None:
    if pair.hint is not None:
        return _read(pair, pair.hint, findings)
    if maker is None:
        findings.append(("no hint", ""))
    if maker is None or target is None:
        return None
    try:
        return make_hint(maker, target, pair.named)
    except CldmError as error:
        findings.append(("not made", str(error)))
        return None


def _of_target(target: Picture, sizes: Sequence[Size]) -> Iterator[str]:
    size = (target.shape[0], target.shape[1])
    seen = sizes[int(nearest_bucket(np.array([size]), sizes)[0])]
    if size[0] < seen[0] or size[1] < seen[1]:
        yield "small"
    whole = View(seen).window(size).whole
    if 1 - seen[0] * seen[1] / (whole[0] * whole[1]) >= CUT:
        yield "cut"
    if int(np.ptp(_thinned(target), axis=-1).max()) < GREY:
        yield "grey"


def _of_both(target: Size, hint: Size) -> list[tuple[str, str]]:
    share = stretch(hint, target)
    sizes = f"{hint[1]}x{hint[0]} for {target[1]}x{target[0]}."
    if share > ASPECTS_DIFFER:
        return [("aspect", sizes)]
    return [("stretched", sizes)] if share > STRETCHED else []


def _of_hint(hint: Picture) -> Iterator[str]:
    """What is odd about a hint's range; the first that is true."""
    low, high = int(hint.min()), int(hint.max())
    thinned = _thinned(hint).reshape(-1, 3)
    middle = np.median(thinned, axis=0)
    drawn = (np.abs(thinned - middle) > NEAR).any(axis=-1).mean()
    if low == 0 and high == 1:
        yield "unscaled"
    elif drawn < DRAWN:
        yield "flat"
    elif high < DIM:
        yield "dim"
    elif low >= MIDDLE.start and all(int(channel) in MIDDLE for channel in middle):
        yield "half range"
    elif _is_inverted(hint):
        yield "inverted"


def _is_inverted(hint: Picture) -> bool:
    """Whether there are thin black lines on white."""
    import cv2

    thinned = _thinned(hint)
    ink, paper = thinned.max(axis=-1) < INK, thinned.min(axis=-1) > PAPER
    if paper.mean() < PAPER_SHARE or ink.mean() < DRAWN:
        return False
    ink = hint.max(axis=-1) < INK
    left = cv2.erode(ink.astype(np.uint8), np.ones((7, 7), np.uint8))
    return bool(left.sum() <= LINE_SHARE * ink.sum())


def _thinned(picture: Picture) -> Picture:
    """Every so many pixels, SAMPLE along the short side: shares can be told from them."""
    step = max(1, min(picture.shape[:2]) // SAMPLE)
    # An odd step doesn't meet the same pixels of a pattern again and again.
    return picture[:: step | 1, :: step | 1]


def _digest(picture: Picture | None) -> int:
    if picture is None:
        return 0
    digest = hashlib.blake2b(f"{picture.shape}".encode(), digest_size=8)
    digest.update(picture.tobytes())
    return int.from_bytes(digest.digest(), "little")


def _outline(picture: Picture) -> np.ndarray:
    """Where a picture changes, at OUTLINE x OUTLINE pixels; mean 0 and length 1."""
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    changes = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    small = cv2.resize(changes, (OUTLINE, OUTLINE), interpolation=cv2.INTER_AREA)
    small = small.astype(np.float32).ravel()
    small = small - small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6), np.float32)
