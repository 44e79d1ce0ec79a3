"""The circle data set: the original's tutorial (fill50k), drawn afresh from a seed.

The hint is a circle's outline, the target the circle filled with one colour before another, and the
prompt names both. A net that has understood the hint fills the right disc: anybody can see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CldmError
from ..hints import HINT_SCALE
from ..pipeline import Picture
from .dataset_writer import DatasetWriter
from .draws import reals
from .pairs import DrawnPicture, Pair

Colour = tuple[int, int, int]

# CSS's named colours, their names as words.
_COLOURS = """
alice blue f0f8ff, antique white faebd7, aquamarine 7fffd4, azure f0ffff, beige f5f5dc,
bisque ffe4c4, black 000000, blanched almond ffebcd, blue 0000ff, blue violet 8a2be2, brown a52a2a,
burly wood deb887, cadet blue 5f9ea0, chartreuse 7fff00, chocolate d2691e, coral ff7f50,
cornflower blue 6495ed, cornsilk fff8dc, crimson dc143c, cyan 00ffff, dark blue 00008b,
dark cyan 008b8b, dark golden rod b8860b, dark gray a9a9a9, dark green 006400, dark khaki bdb76b,
dark magenta 8b008b, dark olive green 556b2f, dark orange ff8c00, dark orchid 9932cc,
dark red 8b0000, dark salmon e9967a, dark sea green 8fbc8f, dark slate blue 483d8b,
dark slate gray 2f4f4f, dark turquoise 00ced1, dark violet 9400d3, deep pink ff1493,
deep sky blue 00bfff, dim gray 696969, dodger blue 1e90ff, fire brick b22222, floral white fffaf0,
forest green 228b22, gainsboro dcdcdc, ghost white f8f8ff, gold ffd700, golden rod daa520,
gray 808080, green 008000, green yellow adff2f, honey dew f0fff0, hot pink ff69b4,
indian red cd5c5c, indigo 4b0082, ivory fffff0, khaki f0e68c, lavender e6e6fa,
lavender blush fff0f5, lawn green 7cfc00, lemon chiffon fffacd, light blue add8e6,
light coral f08080, light cyan e0ffff, light golden rod yellow fafad2, light gray d3d3d3,
light green 90ee90, light pink ffb6c1, light salmon ffa07a, light sea green 20b2aa,
light sky blue 87cefa, light slate gray 778899, light steel blue b0c4de, light yellow ffffe0,
lime 00ff00, lime green 32cd32, linen faf0e6, magenta ff00ff, maroon 800000,
medium aqua marine 66cdaa, medium blue 0000cd, medium orchid ba55d3, medium purple 9370db,
medium sea green 3cb371, medium slate blue 7b68ee, medium spring green 00fa9a,
medium turquoise 48d1cc, medium violet red c71585, midnight blue 191970, mint cream f5fffa,
misty rose ffe4e1, moccasin ffe4b5, navajo white ffdead, navy 000080, old lace fdf5e6, olive 808000,
olive drab 6b8e23, orange ffa500, orange red ff4500, orchid da70d6, pale golden rod eee8aa,
pale green 98fb98, pale turquoise afeeee, pale violet red db7093, papaya whip ffefd5,
peach puff ffdab9, peru cd853f, pink ffc0cb, plum dda0dd, powder blue b0e0e6, purple 800080,
rebecca purple 663399, red ff0000, rosy brown bc8f8f, royal blue 4169e1, saddle brown 8b4513,
salmon fa8072, sandy brown f4a460, sea green 2e8b57, sea shell fff5ee, sienna a0522d, silver c0c0c0,
sky blue 87ceeb, slate blue 6a5acd, slate gray 708090, snow fffafa, spring green 00ff7f,
steel blue 4682b4, tan d2b48c, teal 008080, thistle d8bfd8, tomato ff6347, turquoise 40e0d0,
violet ee82ee, wheat f5deb3, white ffffff, white smoke f5f5f5, yellow ffff00, yellow green 9acd32
"""
DISTANCE = 96
"""How far the two colours are from each other at least, in RGB: the disc can be seen."""
SMALLEST, LARGEST = 0.1, 0.35
"""Radii, as shares of the picture's side."""


@cache
def colours() -> dict[str, Colour]:
    """CSS's named colours: names as words to RGB."""
    entries = (entry.strip().rpartition(" ") for entry in _COLOURS.split(","))
    return {name: _rgb(code) for name, _, code in entries}


def _rgb(code: str) -> Colour:
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


@dataclass(frozen=True)
class Circle:
    """A circle in a square picture, in pixels, and the names of its colour and the background's."""

    side: int
    x: float
    y: float
    radius: float
    colour: str
    background: str

    @property
    def prompt(self) -> str:
        """As in the original, such as "pale golden rod circle with old lace background"."""
        return f"{self.colour} circle with {self.background} background"

    def outline(self) -> Picture:
        """The hint (side, side, 3): a white outline on black."""
        width = max(1, round(self.side / 256))
        return self._drawn((0, 0, 0), (255, 255, 255), width)

    def filled(self) -> Picture:
        """The target (side, side, 3)."""
        return self._drawn(colours()[self.background], colours()[self.colour], -1)

    def disc(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where the disc is, (side, side)."""
        rows, columns = np.ogrid[: self.side, : self.side]
        return (columns - self.x) ** 2 + (rows - self.y) ** 2 <= self.radius**2

    def _drawn(self, paper: Colour, ink: Colour, width: int) -> Picture:
        import cv2

        picture = np.full((self.side, self.side, 3), paper, np.uint8)
        # OpenCV takes whole numbers; with a shift of 4 these are sixteenths of pixels.
        middle = round(self.x * 16), round(self.y * 16)
        cv2.circle(picture, middle, round(self.radius * 16), ink, width, cv2.LINE_AA, 4)
        return picture


class CirclePairs:
    """`count` pairs of side x side pixels, each drawn when it is asked for.

    Pair i depends on seed, side and i alone: a larger set begins with the smaller one. Raises
    CldmError for sides that are no multiple of 8.
    """

    shards = None

    def __init__(self, count: int, side: int = 512, seed: int = 0) -> None:
        if count < 1 or side < 4 * HINT_SCALE or side % HINT_SCALE:
            raise CldmError(
                f"{count} circles of {side}x{side} pixels were asked for: expected at least one, "
                f"and sides that are multiples of {HINT_SCALE}, at least {4 * HINT_SCALE}."
            )
        self.count, self.side, self.seed = count, side, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.count:
            raise IndexError(index)
        circle, name = self.circle(index), f"circle-{index:06d}"
        key = f"circle|{self.side}|{self.seed}|{index}"
        picture = partial(_picture, name, key, self.side)
        return Pair(
            name,
            circle.prompt,
            picture("target", circle.filled),
            picture("hint", circle.outline),
        )

    def circle(self, index: int) -> Circle:
        """What pair number `index` shows."""
        size, x, y, first, second = reals(5, "circle", self.seed, index).tolist()
        radius = self.side * (SMALLEST + size * (LARGEST - SMALLEST))
        room = self.side - 1 - 2 * radius
        colour = [*colours()][int(first * len(colours()))]
        others = _unlike(colour)
        background = others[int(second * len(others))]
        return Circle(self.side, radius + x * room, radius + y * room, radius, colour, background)

    def stamp(self) -> str:
        return f"circles|{self.count}|{self.side}|{self.seed}"

    def strays(self) -> Iterator[str]:
        return iter(())


def _picture(
    name: str, key: str, side: int, role: str, draw: Callable[[], Picture]
) -> DrawnPicture:
    return DrawnPicture(f"{name} ({role})", draw, f"{key}|{role}", (side, side))


@cache
def _unlike(colour: str) -> tuple[str, ...]:
    """The colours that can be told from this one."""
    own = np.array(colours()[colour], float)
    return tuple(
        name
        for name, other in colours().items()
        if np.linalg.norm(own - np.array(other, float)) >= DISTANCE
    )


def write_circles(
    folder: str | Path,
    count: int,
    *,
    side: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the data set as the original has it; a run that was stopped goes on where it was.

    progress(pairs written, count) is called after each pair. Raises CldmError.
    """
    pairs = CirclePairs(count, side, seed)
    writer = DatasetWriter(folder, {"circles": {"side": side, "seed": seed}})
    for index in range(len(writer), count):
        pair = pairs[index]
        writer.add(pair.read_target(), pair.read_hint(), pair.prompt)
        if progress:
            progress(index + 1, count)
