"""Scores of how well a picture follows its hint: the hint against that of the generated picture.

Each score is a pure function of the hint and of what the same annotator found in the generated
picture. SCORES is the one registry: the command line, plots and tests read names from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics
from ..errors import CldmError, ShapeError
from .drawn_poses import keypoints_of

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = 2.0
"""Pixels by which an edge may be displaced."""
MIDDLE = 127
"""A pixel of a drawing or mask is on where it is brighter than this, of 255."""


@dataclass(frozen=True)
class Score:
    """A score and what its numbers mean.

    function: the hint and what was found in the generated picture to a number; both are pictures
    (H, W, 3) or planes (H, W), uint8 in [0, 255] or floating in [0, 1], or what `reads` makes of
    pictures. span: how far a useless and a perfect picture lie apart, about; unit: "" where the
    number is a share. hints: names of the annotators whose hints it is for, the usual choice first.
    """

    name: str
    title: str
    function: Callable[[Array, Array], float]
    higher_is_better: bool
    span: float
    unit: str
    hints: tuple[str, ...]
    reads: Callable[[Array], Array] | None = None

    def __call__(self, hint: Array, found: Array) -> float:
        """The number; raises ShapeError or CldmError where the two don't fit."""
        if self.reads is None:
            return self.function(hint, found)
        read = [self.reads(one) if one.dtype == np.uint8 else one for one in (hint, found)]
        return self.function(*read)

    def said(self, value: float) -> str:
        """The number with its unit, such as 0.71 or 12.4 dE."""
        if math.isnan(value):
            return "NaN"
        return f"{value:.2f}" if not self.unit else f"{value:.1f} {self.unit}"


def edge_f1(hint: Array, found: Array, tolerance: float = TOLERANCE) -> float:
    """F1 of two drawings, white on black, matched within `tolerance` pixels; in [0, 1], 1 is best.

    Precision is the share of found edge pixels with an edge of the hint near by, recall the share
    of the hint's with a found one (boundary F-measure: Martin, Fowlkes, Malik 2004, with distances
    in the place of an assignment). 1 where both are empty, 0 where one of them is. Symmetric.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise CldmError(f"The tolerance is {tolerance}, expected pixels, 0 or more.")
    return metrics.edge_f1(*_masks(hint, found), tolerance=tolerance)


def mask_iou(hint: Array, found: Array) -> float:
    """Intersection over union of two masks, white on black; in [0, 1], 1 is best.

    1 where both are empty, 0 where one of them is. Symmetric.
    """
    return metrics.mask_iou(*_masks(hint, found))


def depth_correlation(hint: Array, found: Array, method: str = "pearson") -> float:
    """Correlation of two depth maps over the pixels; in [-1, 1], 1 is best. Symmetric.

    Depth from one picture is known up to scale and shift (Ranftl et al. 2020, MiDaS): "pearson" is
    the same for every scale above 0 and every shift, "spearman", of the ranks, for every
    rising curve. Where a map is flat there is nothing to correlate: 1 where both are, else 0.
    """
    if method not in ("pearson", "spearman"):
        raise CldmError(f"method is {method!r}, expected one of pearson, spearman.")
    first, second = (_plane(one).ravel() for one in _same_size(hint, found))
    flat = [bool(np.ptp(one) == 0) for one in (first, second)]
    if any(flat):
        return float(all(flat))
    if method == "spearman":
        first, second = _ranks(first), _ranks(second)
    first, second = first - first.mean(), second - second.mean()
    norms = math.sqrt(float(first @ first) * float(second @ second))
    return float(np.clip(float(first @ second) / norms, -1, 1))


def colour_error(hint: Array, found: Array) -> float:
    """Mean distance of two pictures' colours in CIELAB, dE*ab of CIE 1976; 0 is best. Symmetric.

    Black and white are 100 apart, and a distance of 2.3 is just noticed (Mahy et al. 1994).
    Pictures are sRGB; grey ones have equal channels.
    """
    import cv2

    labs = [
        cv2.cvtColor(np.ascontiguousarray(_rgb(one)), cv2.COLOR_RGB2LAB)
        for one in _same_size(hint, found)
    ]
    return float(np.linalg.norm((labs[0] - labs[1]).astype(np.float64), axis=-1).mean())


def keypoint_distance(hint: Array, found: Array) -> float:
    """Mean distance of the hint's keypoints to the found ones, in sizes of the person; 0 is best.

    hint, found: people (P, K, 3) or one person (K, 3) with x, y and confidence, or (.., 2) without;
    a keypoint that isn't seen has confidence 0 or NaN. Each distance counts at most 1, in [0, 1],
    and so does a keypoint that wasn't found, and each of a person that the hint doesn't have. The
    size of a person is the longer side of the box around the hint's keypoints, as in PCK (Yang and
    Ramanan 2013: there a keypoint is right within 0.1 or 0.2 of it). People are paired nearest
    first. 0 where nobody is in either, 1 where nobody is in one of them.
    """
    wanted, others = (_people(one) for one in (hint, found))
    if len(wanted) and len(others) and wanted.shape[1] != others.shape[1]:
        raise ShapeError(
            f"The hint has {wanted.shape[1]} keypoints for each person and {others.shape[1]} were "
            "found: take the same annotator for both."
        )
    pairs = _paired(wanted, others)
    sizes = [_extent(person) for person in wanted]
    largest = max(sizes, default=0.0)
    distances: list[float] = []
    for index, person in enumerate(wanted):
        size = sizes[index] or largest or 1.0
        match = pairs.get(index)
        distances += _distances(person, None if match is None else others[match], size)
    spurious = set(range(len(others))) - set(pairs.values())
    distances += [1.0] * sum(int(_seen(others[index]).sum()) for index in spurious)
    return float(np.mean(distances)) if distances else 0.0


_EDGES = (
    *("canny", "pyracanny", "hed", "pidinet", "teed", "lineart", "lineart_anime"),
    *("lineart_standard", "manga_line", "mlsd", "line_segments", "scribble", "scribble_xdog"),
)
_DEPTHS = ("midas", "depth_anything_v2", "depth_anything", "zoe")
_MASKS = ("mask", "person", "salient", "threshold", "binary")
_POSES = ("openpose", "dwpose", "blazepose")
_COLOURS = (
    *("tile", "color_grid", "blur", "shuffle", "face_mesh", "segments", "oneformer", "uniformer"),
    *("normal_bae", "midas_normal", "normal_from_depth", "grey", "recolor_luminance"),
    *("recolor_intensity", "invert"),
)

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("edge_f1", "edge F1", edge_f1, True, 1.0, "", _EDGES),
        Score("depth_correlation", "depth correlation", depth_correlation, True, 1.0, "", _DEPTHS),
        Score("mask_iou", "mask IoU", mask_iou, True, 1.0, "", _MASKS),
        Score(
            "keypoint_distance",
            "keypoint distance",
            keypoint_distance,
            False,
            1.0,
            "",
            _POSES,
            keypoints_of,
        ),
        Score("colour_error", "colour error", colour_error, False, 100.0, "dE", _COLOURS),
    )
}


def score_named(name: str) -> Score:
    """The score of a name of SCORES; raises CldmError for another name."""
    if name not in SCORES:
        raise CldmError(f"There is no score {name!r}: choose one of {', '.join(SCORES)}.")
    return SCORES[name]


def score_for(annotator: str) -> Score:
    """The usual score for an annotator's hints, by its name, such as canny or annotators:canny.

    Raises CldmError for an annotator that no score is known for.
    """
    hint = annotator.rpartition(":")[2]
    for score in SCORES.values():
        if hint in score.hints:
            return score
    raise CldmError(
        f"No score is known for hints of {annotator!r}: choose one yourself of {', '.join(SCORES)}."
    )


def _same_size(hint: Array, found: Array) -> tuple[Array, Array]:
    """Both as float32 in [0, 1]."""
    pictures = _unit(hint, "hint"), _unit(found, "hint of the generated picture")
    sizes = [one.shape[:2] for one in pictures]
    if sizes[0] != sizes[1]:
        (height, width), (found_height, found_width) = sizes
        raise ShapeError(
            f"The hint is {width}x{height} and that of the generated picture "
            f"{found_width}x{found_height}: resize one of them."
        )
    return pictures


def _unit(picture: Array, what: str) -> Array:
    shape = picture.shape
    if picture.ndim not in (2, 3) or not picture.size or (picture.ndim == 3 and shape[2] != 3):
        raise ShapeError(f"The {what} has shape {shape}, expected (height, width[, 3]).")
    if picture.dtype == np.bool_:
        return picture.astype(np.float32)
    if picture.dtype == np.uint8:
        return np.asarray(picture.astype(np.float32) / 255)
    if not np.issubdtype(picture.dtype, np.floating):
        raise ShapeError(
            f"The {what} holds {picture.dtype}, expected uint8, or floating-point numbers in "
            "[0, 1]."
        )
    low, high = float(picture.min()), float(picture.max())
    if not (low >= 0 and high <= 1):
        raise ShapeError(f"The {what} holds numbers from {low:g} to {high:g}, expected [0, 1].")
    return picture.astype(np.float32)


def _plane(picture: Array) -> Array:
    """(H, W), the mean of the channels, in float64."""
    return np.asarray(picture if picture.ndim == 2 else picture.mean(axis=-1), np.float64)


def _rgb(picture: Array) -> Array:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _masks(hint: Array, found: Array) -> tuple[Array, Array]:
    """Where each is on, for the two in turn."""
    first, second = (_plane(one) > MIDDLE / 255 + 1e-6 for one in _same_size(hint, found))
    return first, second


def _ranks(values: Array) -> Array:
    """The rank of each value, ties sharing the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places.ravel()], np.float64)


def _people(points: Array) -> Array:
    """(P, K, 3) with confidence 0 where a keypoint isn't seen."""
    found = np.asarray(points, np.float64)
    if found.ndim == 2:
        found = found[None]
    if not found.size:
        return np.zeros((0, 0, 3))
    if found.ndim != 3 or found.shape[2] not in (2, 3):
        raise ShapeError(
            f"The keypoints have shape {np.shape(points)}, expected (people, keypoints, 3) with x, "
            "y and confidence."
        )
    if found.shape[2] == 2:
        found = np.concatenate([found, np.ones((*found.shape[:2], 1))], axis=2)
    seen = np.isfinite(found).all(axis=2) & (found[..., 2] > 0)
    found = np.where(seen[..., None], found, 0.0)
    return np.asarray(found[seen.any(axis=1)])


def _seen(person: Array) -> Array:
    return np.asarray(person[:, 2] > 0)


def _extent(person: Array) -> float:
    """The longer side of the box around a person."""
    points = person[_seen(person), :2]
    return float(np.ptp(points, axis=0).max())


def _distances(person: Array, other: Array | None, size: float) -> list[float]:
    """For each keypoint of a person how far it is from the other's, at most 1."""
    seen = _seen(person)
    if other is None:
        return [1.0] * int(seen.sum())
    apart = np.linalg.norm(person[:, :2] - other[:, :2], axis=1) / size
    apart = np.where(_seen(other), np.minimum(apart, 1.0), 1.0)
    return [float(value) for value in apart[seen]]


def _paired(people: Array, others: Array) -> dict[int, int]:
    """Which of the others is each person, nearest first."""
    pairs: dict[int, int] = {}
    costs = [
        (float(np.mean(_distances(person, other, _extent(person) or 1.0))), index, place)
        for index, person in enumerate(people)
        for place, other in enumerate(others)
    ]
    for _, index, place in sorted(costs):
        if index not in pairs and place not in pairs.values():
            pairs[index] = place
    return pairs
