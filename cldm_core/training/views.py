"""Views of a pair: crop and flip, the same for target and hint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CldmError
from ..pipeline import Picture
from ..resampling import resample
from .pairs import Size

ASPECTS_DIFFER = 0.08
"""From here on a hint belongs to another crop of the picture.

Below it is stretched: annotators that round sides to multiples of 64 give such hints.
"""


@dataclass(frozen=True)
class View:
    """What is seen of a pair: `size`, from where, and mirrored or not.

    place: where the window lies in what is over, from 0 (top, left) to 1; (0.5, 0.5) is the middle.
    """

    size: Size
    place: tuple[float, float] = (0.5, 0.5)
    flip: bool = False

    def window(self, original: Size) -> Window:
        """The window in a target of this size, which is scaled until it just covers the view."""
        scale = max(self.size[0] / original[0], self.size[1] / original[1])
        height, width = (
            max(side, round(old * scale)) for side, old in zip(self.size, original, strict=True)
        )
        top = round(self.place[0] * (height - self.size[0]))
        left = round(self.place[1] * (width - self.size[1]))
        return Window((height, width), (top, left), self.size, self.flip)


@dataclass(frozen=True)
class Window:
    """A picture is mirrored if `flip`, brought to `whole`, and cut: `size` from `corner` on."""

    whole: Size
    corner: tuple[int, int]
    size: Size
    flip: bool

    def of_target(self, picture: Picture) -> Picture:
        """The part of a target (H, W, 3), averaged where it shrinks and by cubics else."""
        import cv2

        turned = np.ascontiguousarray(picture[:, ::-1]) if self.flip else picture
        if turned.shape[:2] != self.whole:
            shrinks = turned.shape[0] > self.whole[0]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            turned = np.asarray(
                cv2.resize(turned, self.whole[::-1], interpolation=method), dtype=np.uint8
            )
        return self._cut(turned)

    def of_hint(self, hint: Picture) -> Picture:
        """The same part of a hint (H, W, 3), resampled as what it shows needs (resampling.py)."""
        turned = np.ascontiguousarray(hint[:, ::-1]) if self.flip else hint
        return self._cut(resized_hint(turned, self.whole))

    def _cut(self, picture: Picture) -> Picture:
        top, left = self.corner
        cut = picture[top : top + self.size[0], left : left + self.size[1]]
        return np.ascontiguousarray(cut)


def resized_hint(hint: Picture, size: Size) -> Picture:
    """A hint (H, W, 3) at another size: lines stay lines, masks and maps get no new colours."""
    if hint.shape[:2] == size:
        return hint
    planes = np.ascontiguousarray(hint.transpose(2, 0, 1), dtype=np.float32)
    found = resample(planes, size).transpose(1, 2, 0)
    return np.ascontiguousarray(found.round().clip(0, 255), dtype=np.uint8)


def stretch(hint: Size, target: Size) -> float:
    """By what share a hint must be stretched to lie on its target; 0 where the aspects are equal.

    A difference that rounding to whole pixels explains counts as none.
    """
    expected = target[1] * hint[0] / target[0], target[0] * hint[1] / target[1]
    if abs(hint[1] - expected[0]) <= 1 or abs(hint[0] - expected[1]) <= 1:
        return 0.0
    aspects = hint[1] / hint[0], target[1] / target[0]
    return max(aspects) / min(aspects) - 1


def check_aspects(named: str, hint: Size, target: Size) -> None:
    """Raises CldmError where hint and target show different parts of the picture."""
    if stretch(hint, target) > ASPECTS_DIFFER:
        raise CldmError(
            f"{named}: the hint is {hint[1]}x{hint[0]} and the target {target[1]}x{target[0]}, of "
            "another aspect. Crop one like the other, or make the hints from the targets."
        )
