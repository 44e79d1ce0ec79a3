"""A run put together from its settings: data, base, net, and what is sampled on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CldmError
from ..hooks import named_function
from .batches import Batches
from .buckets import aspect_buckets
from .circles import CirclePairs
from .config import CIRCLES, NONE, TrainConfig, named_columns
from .discs import disc_of
from .evaluate import BATCH, Evaluator, HeldOut
from .made_hints import make_hint
from .models import TYPES, Base, load_base, multiple_of, resolution_of, unet_type
from .scores import Score, score_for, score_named
from .session import device_of, processes
from .sources import Part, Source, hold_out, open_source
from .trainables import Trainable, make_trainable
from .views import View, check_aspects

if TYPE_CHECKING:
    from ..config import UNetConfig
    from ..pipeline import Picture
    from ..unet import ControlledUNet
    from .pairs import Pair, Size

Maker = Callable[[Any], Any]


@dataclass(frozen=True)
class Plan:
    """Everything that `fit` wants."""

    config: TrainConfig
    base: Base
    trainable: Trainable
    training: Source
    held_out: Source
    batches: Batches
    evaluator: Evaluator | None


def make_plan(config: TrainConfig) -> Plan:
    """Opens the data and loads the nets; raises CldmError where something doesn't fit."""
    annotator = named_annotator(config)
    score_of(config)  # before the base is loaded: a wrong name is told at once
    base = load_base(config, device_of(config))
    source = open_data(config, resolution_of(config, base.pipeline.unet.config))
    return plan_of(config, base, source, annotator)


def plan_of(
    config: TrainConfig, base: Base, source: Source, annotator: Maker | None = None
) -> Plan:
    """A run on a base and on pairs that are there already.

    annotator: makes hints where pairs have none, and of samples what is scored; the one that config
    names isn't looked for. Raises CldmError where something doesn't fit.
    """
    unet, score = base.pipeline.unet, score_of(config)
    side = resolution_of(config, unet.config)
    training, held_out = split(config, source)
    rank, world, _ = processes()
    batches = Batches(
        training,
        base.encoders,
        batch_size=config.batch_size,
        resolution=side,
        seed=config.seed,
        drop_prompt=config.drop_prompt,
        flip=config.flip,
        crop=config.crop,
        buckets=sizes_of(config, side, unet.config),
        rank=rank,
        world=world,
        cache=cache_folder(config),
        hints=annotator,
        workers=config.workers,
    )
    trainable = make_net(config, unet)
    evaluator = None
    if len(held_out):
        followed = adherence_of(config, annotator)
        evaluator = Evaluator(
            replace(base.pipeline, unet=trainable.unet),
            [_held(held_out[index], side, annotator, followed) for index in range(len(held_out))],
            followed,
            score,
            steps=config.sample_steps,
            guidance=base.guidance if config.guidance is None else config.guidance,
            batch=min(BATCH, config.batch_size),
            precision=None if config.precision == "fp32" else TYPES[config.precision],
            only_mid_control=config.only_mid_control,
        )
    return Plan(config, base, trainable, training, held_out, batches, evaluator)


def open_data(config: TrainConfig, side: int) -> Source:
    """All pairs; raises CldmError where there are none."""
    if config.data == CIRCLES:
        for name in ("conditioning", "columns"):
            if getattr(config, name):
                raise CldmError(f"{name} is given, but {CIRCLES} are drawn: leave it out.")
        return CirclePairs(config.circles, side, config.seed)
    return open_source(
        config.data,
        conditioning=config.conditioning,
        columns=named_columns(config.columns) or None,
        cache=cache_folder(config),
    )


def adherence_of(config: TrainConfig, annotator: Maker | None) -> Maker | None:
    """What is made of samples to score them: the annotator's hint, or a drawn circle's disc."""
    if annotator is None and config.data == CIRCLES:
        return disc_of
    return annotator


def sizes_of(config: TrainConfig, side: int, unet: UNetConfig) -> tuple[Size, ...] | None:
    """The sizes of aspect buckets; None where all pictures become squares."""
    return aspect_buckets(side, step=multiple_of(unet)) if config.buckets else None


def split(config: TrainConfig, source: Source) -> tuple[Part, Part]:
    """The pairs to train on, and those to score with, none where nothing is evaluated."""
    return hold_out(source, config.held_out if config.evaluate_every else 0, config.seed)


def cache_folder(config: TrainConfig) -> Path | None:
    """Where is kept what is computed once; None where nothing is."""
    if config.cache == NONE:
        return None
    return Path(config.out) / "cache" if config.cache is None else Path(config.cache)


def make_net(config: TrainConfig, unet: ControlledUNet) -> Trainable:
    """What is trained; the same numbers for the same seed. The UNet comes into its `unet_type`."""
    kind: Any = config.kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        trainable = make_trainable(
            kind,
            unet,
            init=config.init,
            sd_locked=config.sd_locked,
            only_mid_control=config.only_mid_control,
            rank=None if config.init is not None else config.rank,
            checkpointing=config.checkpointing,
        )
    # Only now, so that a new net starts from all digits of the file.
    trainable.unet.to(unet_type(config))
    return trainable


def named_annotator(config: TrainConfig) -> Maker | None:
    """The function that config names; raises CldmError where there is none."""
    return None if config.annotator is None else named_function(config.annotator)


def score_of(config: TrainConfig) -> Score:
    """How hints are compared; raises CldmError where that isn't known."""
    if config.score is not None:
        return score_named(config.score)
    if config.annotator is not None and config.evaluate_every:
        return score_for(config.annotator)
    return score_named("mask_iou")


def cut_pair(pair: Pair, side: int, maker: Maker | None = None) -> tuple[Picture, Picture]:
    """Target and hint (side, side, 3), uint8, as a training at this side sees the pair.

    maker: makes the hint of the target where the pair has none. Raises CldmError where the two are
    of different shapes, or can't be read.
    """
    picture = pair.read_target()
    original = (picture.shape[0], picture.shape[1])
    window = View((side, side)).window(original)
    target = window.of_target(picture)
    if pair.hint is None and maker is not None:
        return target, make_hint(maker, target, pair.named)
    stored = pair.read_hint()
    check_aspects(pair.named, (stored.shape[0], stored.shape[1]), original)
    return target, window.of_hint(stored)


def _held(pair: Pair, side: int, maker: Maker | None, followed: Maker | None) -> HeldOut:
    """A pair to score with; a disc is compared with its target's, since its hint is an outline."""
    target, hint = cut_pair(pair, side, maker)
    wanted = disc_of(target) if followed is disc_of else None
    return HeldOut(pair.name, pair.prompt, hint, target, wanted)
