"""A dark canvas for the Control Inspector's sheets: boxes, texts, colour maps and axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Picture = np.ndarray[Any, np.dtype[np.uint8]]
Point = tuple[float, float]

SCALE = 2
"""Sheets are drawn this much larger and then averaged: smooth lines, curves and letters."""
BACKGROUND = "#1e1e1e"
PANEL = "#262626"
EMPTY = "#222222"
HATCH = "#303030"
LINE = "#3a3a3a"
TEXT = "#dddddd"
BRIGHT = "#ffffff"
DIM = "#8c8c8c"
ALERT = "#e5484d"


class Box(NamedTuple):
    """A rectangle in pixels of the finished sheet."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


class Canvas:
    """Draws in pixels of the finished sheet; `finish` gives it."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (width * SCALE, height * SCALE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self,
        box: Box,
        text: str,
        size: float,
        colour: str = TEXT,
        align: str = "left",
        strong: bool = False,
    ) -> None:
        """One line in the middle of the box's height, cut with an ellipsis where it's too long.

        align: "left", "center" or "right".
        """
        font = _font(round(size * SCALE))
        shown = fitted(text, box.width, size)
        left = {
            "left": box.left,
            "center": box.left + box.width / 2,
            "right": box.right,
        }[align]
        middle = box.top + box.height / 2
        self.draw.text(
            (left * SCALE, middle * SCALE),
            shown,
            fill=colour,
            font=font,
            anchor={"left": "lm", "center": "mm", "right": "rm"}[align],
            stroke_width=1 if strong else 0,  # the font has one weight only
        )

    def box(
        self, box: Box, fill: str | None = None, outline: str | None = None, radius: float = 0
    ) -> None:
        """A filled or outlined rectangle with round corners."""
        self.draw.rounded_rectangle(_corners(box), radius * SCALE, fill, outline, SCALE)

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """A line through the points, round at its corners and ends."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        pixels = max(1, round(width * SCALE))
        self.draw.line(scaled, colour, pixels, joint="curve")

    def dot(self, at: Point, radius: float, fill: str, outline: str | None = None) -> None:
        """A disc."""
        x, y = at
        corners = _corners(Box(x - radius, y - radius, 2 * radius, 2 * radius))
        self.draw.ellipse(corners, fill, outline, SCALE)

    def area(self, points: Sequence[Point], colour: str, opacity: float) -> None:
        """A polygon through which what lies below is seen."""
        from PIL import Image, ImageDraw

        mask = Image.new("L", self.image.size)
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        ImageDraw.Draw(mask).polygon(scaled, fill=round(255 * opacity))
        self.image.paste(colour, mask=mask)

    def hatch(self, box: Box, radius: float, gap: float = 9) -> None:
        """A box with diagonal lines: nothing is here."""
        from PIL import Image, ImageDraw

        width, height = (round(side * SCALE) for side in (box.width, box.height))
        tile = Image.new("RGB", (width, height), EMPTY)
        draw = ImageDraw.Draw(tile)
        for start in np.arange(-height, width, gap * SCALE):
            draw.line([(start, height), (start + height, 0)], HATCH, SCALE + 1)
        self._paste(tile, box, radius)

    def picture(self, box: Box, picture: Picture, radius: float) -> None:
        """A picture (H, W, 3) in the box, with round corners."""
        import cv2
        from PIL import Image

        width, height = (round(side * SCALE) for side in (box.width, box.height))
        shrinks = picture.shape[0] > height or picture.shape[1] > width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        scaled = cv2.resize(picture, (width, height), interpolation=method)
        self._paste(Image.fromarray(scaled), box, radius)

    def _paste(self, tile: Any, box: Box, radius: float) -> None:
        from PIL import Image, ImageDraw

        mask = Image.new("L", tile.size)
        corners = (0, 0, tile.width - 1, tile.height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(corners, radius * SCALE, 255)
        self.image.paste(tile, (round(box.left * SCALE), round(box.top * SCALE)), mask)

    def finish(self) -> Picture:
        """The sheet (H, W, 3)."""
        return np.array(self.image.reduce(SCALE), dtype=np.uint8)


def _corners(box: Box) -> tuple[float, float, float, float]:
    left, top = round(box.left * SCALE), round(box.top * SCALE)
    right, bottom = round(box.right * SCALE) - 1, round(box.bottom * SCALE) - 1
    return left, top, max(left, right), max(top, bottom)


@lru_cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def text_width(text: str, size: float) -> float:
    """How many pixels a line of text takes."""
    return float(_font(round(size * SCALE)).getlength(printable(text))) / SCALE


def fitted(text: str, width: float, size: float) -> str:
    """The text as the font can show it, cut with an ellipsis where it is wider than `width`."""
    shown = printable(text)
    if text_width(shown, size) <= width:
        return shown
    kept = shown
    while kept and text_width(kept + "…", size) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…" if kept else ""


def printable(text: str) -> str:
    """The text with a question mark for each letter that Pillow's own font lacks."""
    return "".join(one if " " <= one <= "~" or one in "·…" else "?" for one in text)


def colours(values: Array) -> Picture:
    """Numbers in [0, 1] of any shape to colours (..., 3) of the map inferno."""
    import cv2

    levels = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    bgr = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_INFERNO)
    return np.asarray(bgr[..., ::-1], np.uint8).reshape(*levels.shape, 3)


def colour_of(value: float) -> str:
    """One number in [0, 1] as the colour of `colours`."""
    red, green, blue = colours(np.array([value]))[0]
    return f"#{red:02x}{green:02x}{blue:02x}"


def number(value: float) -> str:
    """A number in at most six characters: three digits that count, of small and huge ones two."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 99999.5:
        power = math.floor(math.log10(abs(value)))
        digits = max(0, (2 if power >= -1 else 1) - power)
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them, from at most 0."""
    low, high = min(0.0, low), max(0.0, high)
    if low == high:
        high = low + 1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()})
