"""Makes docs/annotators.jpg: one picture, and its hints by all annotators without weights.

    python scripts/annotator_sheet.py astronaut.png docs/annotators.jpg

The picture in the docs is of Eileen Collins, by NASA and free of rights, as scikit-image 0.25 has
it in skimage/data/astronaut.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
SIDE, LABEL, COLUMNS = 236, 24, 5
QUALITY = 74
# What defaults, meant for larger pictures, wouldn't show at this size.
TOLD: dict[str, dict[str, float]] = {"blur": {"sigma": 4.0}, "color_grid": {"cell": 24}}

Pixels = npt.NDArray[Any]


def main() -> None:
    """Read the command line, make every hint, and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path, help="a photo; its middle is taken")
    parser.add_argument("sheet", type=Path, help="JPEG to write")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import cv2

    from annotators import ANNOTATORS
    from annotators.files import read_picture

    photo = cv2.resize(square(read_picture(options.picture)), (SIDE, SIDE), None, 0, 0, 3)
    middle = np.zeros((SIDE, SIDE), np.uint8)
    middle[SIDE // 3 : -SIDE // 3, SIDE // 3 : -SIDE // 3] = 255
    cells = [labelled("the picture", photo)]
    for one in ANNOTATORS.values():
        if one.weights:
            continue
        hint = one(photo, mask=middle if one.needs_mask else None, **TOLD.get(one.name, {}))
        cells.append(labelled(one.name, shown(hint)))
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % COLUMNS)
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    print(f"{options.sheet}: {options.sheet.stat().st_size} bytes, {len(cells)} cells")


def square(picture: Pixels) -> Pixels:
    """The middle of a picture (H, W, C), as high as wide."""
    side = min(picture.shape[:2])
    top, left = ((size - side) // 2 for size in picture.shape[:2])
    return picture[top : top + side, left : left + side, :3]


def shown(hint: Pixels) -> Pixels:
    """A hint as pixels; -1, which marks masked ones, as black."""
    if hint.dtype == np.uint8:
        return hint
    return np.clip(hint.astype(np.float32) * 255, 0, 255).round().astype(np.uint8)


def labelled(label: str, picture: Pixels) -> Pixels:
    """A picture with its label above, and a white edge."""
    import cv2

    strip = np.full((LABEL, SIDE, 3), 255, np.uint8)
    cv2.putText(
        strip, label, (2, LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
    )
    cell = np.vstack([strip, picture])
    return cv2.copyMakeBorder(cell, 0, 4, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


if __name__ == "__main__":
    main()
