"""What all line and edge annotators share: padding, grey levels, safe steps, scribbles.

Bit for bit as in the preprocessors of lllyasviel/ControlNet, huggingface/controlnet_aux and
Fannovel16/comfyui_controlnet_aux, where the names nms, safe_step and scribble come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .base import RGB8, Annotator, Weights
from .keeper import network
from .pictures import as_rgb, each
from .settings import Flag

if TYPE_CHECKING:
    from torch import Tensor, nn

Maps = NDArray[np.uint8]
"""(N, H, W), one map for each picture."""

REPOSITORY, REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"
"""Where most of these networks' weights are."""

MULTIPLE = 64
"""To what the sides are padded, as in comfyui_controlnet_aux `resize_image_with_pad`."""

SAFE_STEPS = 2
SCRIBBLE_SIGMA = 3.0
SCRIBBLE_THRESHOLD = 127
SCRIBBLE_LEAST = 4
"""The thinned lines are blurred, and what is lighter than this is a stroke."""

SAFE = Flag(True, "a few flat grey levels in place of soft ones: faint patterns don't get through")
SCRIBBLE = Flag(False, "even strokes, as drawn by hand, in place of soft edges")


def edge_padded(images: RGB8, multiple: int = MULTIPLE) -> RGB8:
    """(N, H, W, 3) with the last row and column repeated until both sides are multiples."""
    height, width = images.shape[1:3]
    below, right = -height % multiple, -width % multiple
    if below == right == 0:
        return images
    return np.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


def sigmoid(logits: Tensor) -> Tensor:
    """In double precision, as the references do."""
    # Apple's GPUs have none.
    able = logits.cpu() if logits.device.type == "mps" else logits
    return 1 / (1 + (-able.double()).exp())


def safe_step(edges: Tensor, steps: int = SAFE_STEPS) -> Tensor:
    """Values in [0, 1] on `steps` + 1 levels; a 1 becomes more than 1, which white limits."""
    levels = (edges.float() * float(steps + 1)).int()
    return levels.float() / float(steps)


def grey_levels(edges: Tensor) -> Maps:
    """Values in [0, 1] as 0 to 255, cut off and not rounded; computed where the network is."""
    from .nets.frames import whole

    return whole(edges * 255.0)


def thinned(edges: Maps, threshold: float, sigma: float) -> Maps:
    """(H, W): 255 along the ridges of the blurred map that are higher than the threshold (nms)."""
    import cv2

    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), sigma)
    ridge = np.zeros(blurred.shape, np.bool_)
    row, diagonal = np.zeros((3, 3), np.uint8), np.eye(3, dtype=np.uint8)
    row[1] = 1
    for line in (row, row.T, diagonal, diagonal[::-1]):
        ridge |= cv2.dilate(blurred, np.ascontiguousarray(line)) == blurred
    return np.where(ridge & (blurred > threshold), 255, 0).astype(np.uint8)


def scribbled(edges: Maps) -> Maps:
    """(H, W) soft edges as strokes of one width, 0 or 255."""
    import cv2

    lines = thinned(edges, SCRIBBLE_THRESHOLD, SCRIBBLE_SIGMA)
    blurred = cv2.GaussianBlur(lines, (0, 0), SCRIBBLE_SIGMA)
    return np.where(blurred > SCRIBBLE_LEAST, 255, 0).astype(np.uint8)


def soft_edges(edges: Tensor, steps: int, *, scribble: bool = False) -> Maps:
    """Maps in [0, 1] as grey levels: on safe steps if there are any, then as strokes if wanted."""
    maps = grey_levels(safe_step(edges, steps) if steps else edges)
    return np.stack([*each(scribbled, maps)]) if scribble else maps


def as_hints(maps: Maps, like: RGB8) -> RGB8:
    """Maps of padded pictures, cut to the size of the pictures, as (N, H, W, 3)."""
    height, width = like.shape[1:3]
    return as_rgb(maps[:, :height, :width])


def record(run: Callable[..., RGB8], title: str, description: str, weights: Weights) -> Annotator:
    """The record of a network of soft edges; `run` is given safe, scribble and device."""
    return Annotator(
        name=run.__name__,
        title=title,
        description=description,
        run=run,
        params={"safe": SAFE, "scribble": SCRIBBLE},
        resolution=512,
        batched=True,
        weights=(weights,),
    )


def hints(
    images: RGB8,
    weights: Weights,
    build: Callable[..., nn.Module],
    edges: Callable[[nn.Module, Tensor], Tensor],
    *,
    safe: bool,
    scribble: bool,
    device: Any,
) -> RGB8:
    """Hints of (N, H, W, 3), from what `edges(net, frames)` makes of its frames, padded.

    frames: (N, 3, h, w) from 0 to 255; edges: (N, h, w) in [0, 1].
    """
    from .nets.frames import as_tensor

    with network(weights, build, device) as net:
        found = edges(net, as_tensor(edge_padded(images), net))
    return as_hints(soft_edges(found, SAFE_STEPS if safe else 0, scribble=scribble), images)
