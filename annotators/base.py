"""What every annotator shares: its record, and the way of a picture through it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from .errors import AnnotatorError, Unavailable
from .memory import in_pieces
from .pictures import (
    RGB8,
    Mask,
    Picture,
    all_resized,
    as_masks,
    as_uint8,
    on_white,
    resized_mask,
    working_size,
)
from .settings import Choice, Flag, Param, Setting, complete
from .weights import Weights

__all__ = [
    "RGB8",
    "Annotator",
    "AnnotatorError",
    "Choice",
    "Flag",
    "Mask",
    "Param",
    "Picture",
    "Setting",
    "Weights",
    "needed",
]

RESOLUTION = "resolution"
BATCH_PIXELS = 8 * 768 * 768
"""How many pixels a batched annotator gets at once, unless one picture alone has more."""


@dataclass(frozen=True)
class Annotator:
    """One way to make hints, and everything that a node, a command line or a test needs to know.

    `run(image, **settings)` takes one (H, W, 3) uint8 RGB picture at the working resolution, or
    (H, W, 4) RGBA if `reads_alpha` and the picture has an alpha channel, and gives (H, W, 3) uint8.
    It may rely on checked settings, must leave `image` as it is, must give a new array, and the
    same hint for the same picture.

    params: its own settings; every annotator has `resolution` besides (see `settings`).
    resolution: the default of that setting; 0 works on the picture as it is.
    batched: `run` takes and gives (N, H, W, 3), all pictures of one size. A network on a processor
    gets one after the other, unless it is `batched_on_cpu`: several are no faster there, and who
    listens could not stop them.
    weights: every file that it may need. `run` then gets the keyword `device` as well.
    needs_mask: `run` gets the keyword `mask`, (H, W) float32 in [0, 1], and there is none without.
    dtype: "float32" where the hint holds what uint8 can't, as -1.
    """

    name: str
    title: str
    description: str
    run: Callable[..., Any]
    params: Mapping[str, Setting] = field(default_factory=dict)
    resolution: int = 0
    reads_alpha: bool = False
    batched: bool = False
    batched_on_cpu: bool = False
    needs_mask: bool = False
    weights: tuple[Weights, ...] = ()
    dtype: str = "uint8"

    @property
    def settings(self) -> dict[str, Setting]:
        """Its own settings and the common ones."""
        help_ = "short side of the picture that is worked on and of the hint; 0: as it is"
        return {**self.params, RESOLUTION: Param(self.resolution, 0, 16384, help_)}

    @property
    def about(self) -> str:
        """The description, and what its weights may be used for where that is limited."""
        limited = [weights.file for weights in self.weights if not weights.commercial]
        if not limited:
            return self.description
        return f"{self.description} Not for commercial use: {', '.join(limited)}."

    def __call__(
        self,
        image: Picture,
        /,
        *,
        mask: Picture | None = None,
        device: Any = None,
        **params: object,
    ) -> Picture:
        """The hint of a picture (H, W, 3), or the hints of a batch (N, H, W, 3).

        Grey pictures are taken as RGB with equal channels, and RGBA is laid on white unless the
        annotator reads alpha itself. The hint has the size of the picture, or at a `resolution`
        that many pixels at the short side and the same aspect. It is uint8 RGB unless `dtype` says
        float32. `device` matters only to annotators with weights; None is the best there is.
        """
        settings = complete(self.name, self.settings, params)
        pixels = as_uint8(image)
        if pixels.shape[-1] == 4 and not self.reads_alpha:
            pixels = on_white(pixels)
        frames = pixels[None] if pixels.ndim == 3 else pixels
        height, width = frames.shape[1:3]
        size = working_size(height, width, int(settings.pop(RESOLUTION)))
        masks = self._masks(mask, len(frames), size)
        if self.weights:
            settings["device"] = device
        hints = _joined(self._hints(frames, masks, size, settings), len(frames))
        return hints[0] if pixels.ndim == 3 else hints

    def at_once(self, height: int, width: int, device: Any) -> int:
        """How many pictures of this size `run` gets together, where they fit into memory."""
        if not self.batched:
            return 1
        if self.weights and not self.batched_on_cpu:
            from .keeper import best_device

            if best_device(device).type == "cpu":
                return 1
        return max(1, BATCH_PIXELS // (height * width))

    def _masks(self, mask: Picture | None, count: int, size: tuple[int, int]) -> list[Mask] | None:
        if mask is None and self.needs_mask:
            raise AnnotatorError(f"{self.name} needs a mask: white where it has to act.")
        if mask is None:
            return None
        if not self.needs_mask:
            raise AnnotatorError(f"{self.name} takes no mask: leave it out.")
        return [resized_mask(one, *size) for one in as_masks(mask, count)]

    def _hints(
        self,
        frames: RGB8,
        masks: list[Mask] | None,
        size: tuple[int, int],
        settings: dict[str, Any],
    ) -> Iterator[Picture]:
        """The hints in pieces (N, H, W, 3); who listens is told before each and at the end."""

        def run(start: int, end: int) -> Picture:
            piece = all_resized(frames[start:end], *size)
            hints: Picture
            if self.batched:
                # PyTorch warns of arrays that are read-only.
                hints = self.run(np.require(piece, requirements=["C", "W"]), **settings)
            else:
                extra = {} if masks is None else {"mask": masks[start]}
                hints = self.run(piece[0], **extra, **settings)[None]
            return hints

        return in_pieces(run, len(frames), self.at_once(*size, settings.get("device")))


def _joined(pieces: Iterable[Picture], count: int) -> Picture:
    """Pieces (n, H, W, 3) as one (count, H, W, 3), each let go as soon as it has its place."""
    hints: Picture = np.empty(0)
    done = 0
    for piece in pieces:
        if len(piece) == count:
            hints = piece
            continue
        if done == 0:
            hints = np.empty((count, *piece.shape[1:]), piece.dtype)
        hints[done : done + len(piece)] = piece
        done += len(piece)
    return hints


def needed(
    package: str, *, to_install: str | None = None, by: str = "This annotator"
) -> ModuleType:
    """An optional package, imported; raises Unavailable with the line that installs or mends it.

    by: what needs it, as the beginning of the sentence.
    """
    try:
        return importlib.import_module(package)
    # Broken packages raise anything: ValueError or AttributeError where NumPy is of another age.
    except Exception as error:
        name = to_install or package.partition(".")[0]
        if isinstance(error, ModuleNotFoundError):
            advice = f"Install it with: pip install {name}"
        else:
            # Its dependencies stay as they are: they may be the host's.
            advice = f"Mend it with: pip install --upgrade --force-reinstall --no-deps {name}"
        raise Unavailable(
            f"{by} needs the package {name}, which can't be imported ({error}). {advice}"
        ) from error
