"""Samples held-out hints with fixed seeds while a net trains, and scores how it follows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..control import Control
from ..errors import CldmError
from ..fitting import fit_hint
from ..pipeline import Picture, Settings, to_hint
from .made_hints import alone
from .scores import Score, score_named
from .undisturbed import undisturbed
from .zero_norms import zero_norms

log = logging.getLogger("cldm_core")

Array = np.ndarray[Any, np.dtype[Any]]
Adherence = Callable[[Picture], Array]
"""The annotator that made the hints: a picture (H, W, 3) uint8 to its hint."""

SEED = 1234
BATCH = 8


class Sampler(Protocol):
    """What pictures are sampled with: `pipeline.Pipeline`, or what is called like it."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        controls: Sequence[Control],
        settings: Settings,
        /,
        *,
        negative: str,
    ) -> Picture:
        """Pictures (count, height, width, 3), uint8 RGB."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A hint that no training sees: (H, W, 3) uint8, sides multiples of 8, and its prompt.

    target: the picture that the hint is of, for sheets. wanted: what the score compares with where
    that isn't the hint itself, such as a filled disc for its outline, or keypoints.
    """

    name: str
    prompt: str
    hint: Picture
    target: Picture | None = None
    wanted: Array | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one evaluation found; pictures and scores are in the order of the held-out hints.

    score: the mean of per_picture, None where nothing scores. zero_norms: see `zero_norms`.
    """

    step: int
    score: float | None
    per_picture: tuple[float, ...]
    pictures: tuple[Picture, ...]
    zero_norms: dict[str, float] = field(default_factory=dict)
    scored_by: Score | None = None

    def numbers(self) -> dict[str, Any]:
        """What History.note takes, beside the step."""
        numbers: dict[str, Any] = {"zero_norms": self.zero_norms}
        if self.score is not None and self.scored_by is not None:
            numbers["adherence"] = self.score
            numbers["per_picture"] = list(self.per_picture)
            numbers["score"] = self.scored_by.name
        return numbers


class Evaluator:
    """Samples the held-out hints through a net in training; training goes on as if it hadn't.

    pipeline: samples the pictures with the base that is trained on. adherence: the annotator that
    made the hints; None samples and scores nothing. score: a Score, or the name of one. Picture i
    has the seed `seeds + i` and is the same in every batch, so that evaluations differ by the net
    alone; `batch` are sampled together at most. precision: number type of torch.autocast for UNet
    and net; None computes in the type of the weights, and in the UNet's where the net has another.
    only_mid_control: as in training. extra: modules beside net and UNet whose mode must be kept,
    such as a text encoder that is trained.

    Modes (train or eval) of all modules and the states of Python's, NumPy's and PyTorch's random
    numbers are afterwards what they were. Raises CldmError where there is no hint, or none fits.
    """

    def __init__(
        self,
        pipeline: Sampler,
        held_out: Sequence[HeldOut],
        adherence: Adherence | None,
        score: Score | str = "edge_f1",
        *,
        seeds: int = SEED,
        steps: int = 20,
        guidance: float = 7.5,
        strength: float = 1.0,
        negative: str = "",
        scheduler: str = "ddim",
        batch: int = BATCH,
        precision: torch.dtype | None = None,
        only_mid_control: bool = False,
        extra: Sequence[nn.Module] = (),
    ) -> None:
        if not held_out:
            raise CldmError("There are no held-out hints to evaluate with: give at least one.")
        self.pipeline, self.held_out, self.adherence = pipeline, tuple(held_out), adherence
        self.score = score_named(score) if isinstance(score, str) else score
        self.settings = Settings(steps, guidance, seeds, scheduler=scheduler)
        for one in self.held_out:
            self._require_hint(one)
        self.strength, self.negative, self.batch = strength, negative, max(1, batch)
        self.precision, self.only_mid_control = precision, only_mid_control
        self.extra = tuple(extra)

    def __call__(self, net: nn.Module, step: int) -> Evaluation:
        """Samples all held-out hints through the net; its weights may be in training.

        The net may be wrapped in DistributedDataParallel or torch.compile.
        """
        net = unwrapped(net)
        unet = getattr(self.pipeline, "unet", None)
        modules = [one for one in (net, unet, *self.extra) if isinstance(one, nn.Module)]
        with undisturbed(modules), torch.inference_mode():
            pictures = self._sample(net)
            scores = self._scores(pictures)
        mean = float(np.mean(scores)) if scores else None
        self._warn_of_black(pictures, step)
        scored_by = None if mean is None else self.score
        return Evaluation(step, mean, scores, pictures, zero_norms(net), scored_by)

    def _sample(self, net: nn.Module) -> tuple[Picture, ...]:
        weight = next(net.parameters())
        precision = self._precision(weight)
        # Without the cache: casts of weights that are made here have no graph to train through.
        autocast = torch.autocast(
            weight.device.type, precision, enabled=precision is not None, cache_enabled=False
        )
        pictures: list[Picture] = []
        with autocast:
            for start, group in self._batches():
                settings = self._sized(start, len(group), group[0])
                hints = to_hint(np.stack([one.hint for one in group]))
                control = Control(net, hints, self.strength, blocks=self._blocks(net))
                prompts = [one.prompt for one in group]
                sampled = self.pipeline(prompts, [control], settings, negative=self.negative)
                pictures += list(sampled)
        return tuple(pictures)

    def _precision(self, weight: Tensor) -> torch.dtype | None:
        """What to compute in where it isn't said: the UNet's type, if the net has another."""
        unet = getattr(self.pipeline, "unet", None)
        if self.precision is not None or not isinstance(unet, nn.Module):
            return self.precision
        base = next(unet.parameters()).dtype
        return None if base == weight.dtype else base

    def _batches(self) -> list[tuple[int, list[HeldOut]]]:
        """Neighbours of one size, at most `batch` together, with the place of the first."""
        found = []
        sized = groupby(enumerate(self.held_out), key=lambda item: item[1].hint.shape)
        for _, group in sized:
            members = list(group)
            for start in range(0, len(members), self.batch):
                piece = members[start : start + self.batch]
                found.append((piece[0][0], [one for _, one in piece]))
        return found

    def _require_hint(self, one: HeldOut) -> None:
        """Raises CldmError where a hint is no picture, or of a size that can't be sampled."""
        shape = one.hint.shape
        if one.hint.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise CldmError(
                f"The held-out hint {one.name!r} is {one.hint.dtype} {shape}, expected uint8 "
                "(height, width, 3)."
            )
        self._sized(0, 1, one)

    def _sized(self, place: int, count: int, one: HeldOut) -> Settings:
        """The settings for pictures like this one, whose place is that of the first."""
        height, width = one.hint.shape[:2]
        seed = self.settings.seed + place
        return replace(self.settings, seed=seed, count=count, width=width, height=height)

    def _blocks(self, net: nn.Module) -> tuple[float, ...] | None:
        """Weights that leave the middle block alone, where only that is trained."""
        if not self.only_mid_control:
            return None
        zero_convs: Any = getattr(net, "zero_convs", ())
        return (*(0.0 for _ in zero_convs), 1.0)

    def _scores(self, pictures: Sequence[Picture]) -> tuple[float, ...]:
        if self.adherence is None:
            return ()
        return tuple(
            self.score(
                one.hint if one.wanted is None else one.wanted,
                _hint_of(one, picture, self.adherence),
            )
            for one, picture in zip(self.held_out, pictures, strict=True)
        )

    def _warn_of_black(self, pictures: Sequence[Picture], step: int) -> None:
        black = [
            one.name
            for one, picture in zip(self.held_out, pictures, strict=True)
            if not picture.any()
        ]
        if black:
            log.warning(
                "%d of %d samples at step %d are all black, %s first: NaN in the nets or the VAE "
                "looks like that. Take bf16 or fp32 where fp16 is used.",
                *(len(black), len(pictures), step, black[0]),
            )


def _hint_of(one: HeldOut, picture: Picture, adherence: Adherence) -> Array:
    """What the annotator finds in a sample; raises CldmError that names the held-out hint."""
    try:
        return fitted(np.asarray(alone(adherence, picture)), picture)
    except Exception as error:  # any function may be handed in, and fail in its own way
        raise CldmError(
            f"The sample of the held-out hint {one.name!r} can't be scored, as its own hint can't "
            f"be made: {error}".rstrip(".")
            + "."
        ) from error


def fitted(hint: Array, picture: Picture) -> Array:
    """A hint picture at the size of the picture it was made of; keypoints as they are.

    Annotators may work at a resolution of their own.
    """
    if hint.dtype != np.uint8 or hint.ndim != 3 or hint.shape[:2] == picture.shape[:2]:
        return hint
    height, width = picture.shape[:2]
    resized = fit_hint(to_hint(hint), width, height, fit="stretch")
    return np.asarray((resized[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def unwrapped(net: nn.Module) -> nn.Module:
    """The net within DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(net, "_orig_mod", None)
        if isinstance(net, nn.parallel.DistributedDataParallel):
            inner = net.module
        if not isinstance(inner, nn.Module):
            return net
        net = inner
