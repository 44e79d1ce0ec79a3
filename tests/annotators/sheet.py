"""Makes docs/annotators.jpg: one picture, and what annotators make of it.

    python -m tests.annotators.sheet astronaut.png docs/annotators.jpg

Needs what `make test-weights` fetches and installs: HED's, MediaPipe's and U-2-Netp's weights. The
picture in the docs is of Eileen Collins, by NASA and free of rights, as scikit-image 0.25 has it in
skimage/data/astronaut.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from annotators import ANNOTATORS, annotate, weights
from annotators._salient import MODELS
from annotators.files import read_picture

from . import real_weights

SIDE, LABEL, COLUMNS = 236, 24, 5
QUALITY = 78
WORKING = 512
"""Side of the picture that the hints are made of: what annotators' defaults are meant for."""

Pixels = npt.NDArray[Any]


def cells(photo: Pixels) -> Iterator[tuple[str, Pixels]]:
    """Labels, and what stands below."""
    yield "the picture", photo
    for label, name, told in (
        ("canny", "canny", {}),
        ("hed", "hed", {}),
        ("hed, scribble", "hed", {"scribble": True}),
        ("lineart_standard", "lineart_standard", {}),
        ("scribble_xdog", "scribble_xdog", {}),
        ("pyracanny", "pyracanny", {}),
        ("blazepose", "blazepose", {}),
        ("salient", "salient", {}),
        ("person", "person", {}),
        ("face_mesh", "face_mesh", {}),
        ("tile", "tile", {}),
        ("color_grid", "color_grid", {}),
        ("shuffle", "shuffle", {}),
    ):
        yield label, annotate(name, photo, **told)
    person = annotate("person", photo)[..., 0]
    grown = cv2.dilate(person, np.ones((25, 25), np.uint8))
    yield "inpaint, the person masked", annotate("inpaint", photo, mask=grown)


def main() -> None:
    """Read the command line, make every hint, and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path, help="a photo; its middle is taken")
    parser.add_argument("sheet", type=Path, help="JPEG to write")
    options = parser.parse_args()
    photo = cv2.resize(square(read_picture(options.picture)), (WORKING, WORKING), None, 0, 0, 3)
    with ExitStack() as stack:
        hed = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "hed.pth"
        torch.save(real_weights.hed(real_weights.hed_arrays()), hed)
        stack.enter_context(weights.given(ANNOTATORS["hed"].weights[0], hed))
        small = real_weights.file("u2netp.onnx")
        stack.enter_context(weights.given(MODELS["small"], small))
        weights.folders = lambda: [real_weights.FOLDER]
        found = [labelled(label, shown(hint)) for label, hint in cells(photo)]
    found += [np.full_like(found[0], 255)] * (-len(found) % COLUMNS)
    rows = [np.hstack(found[i : i + COLUMNS]) for i in range(0, len(found), COLUMNS)]
    cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def square(picture: Pixels) -> Pixels:
    """The middle of a picture (H, W, C), as high as wide."""
    side = min(picture.shape[:2])
    top, left = ((size - side) // 2 for size in picture.shape[:2])
    return picture[top : top + side, left : left + side, :3]


def shown(hint: Pixels) -> Pixels:
    """A hint as pixels of the sheet; -1, which marks masked ones, as black."""
    if hint.dtype != np.uint8:
        hint = np.clip(hint.astype(np.float32) * 255, 0, 255).round().astype(np.uint8)
    return cv2.resize(hint, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def labelled(label: str, picture: Pixels) -> Pixels:
    """A picture with its label above, and a white edge."""
    strip = np.full((LABEL, SIDE, 3), 255, np.uint8)
    cv2.putText(
        strip, label, (2, LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
    )
    cell = np.vstack([strip, picture])
    return cv2.copyMakeBorder(cell, 0, 4, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


if __name__ == "__main__":
    main()
