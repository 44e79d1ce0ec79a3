"""Batches: latents, hints and embeddings of the pairs, any of them at any time."""

from __future__ import annotations

import itertools
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache as remember
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CldmError, ShapeError
from ..hints import HINT_SCALE
from ..pictures import decode_picture
from ..pipeline import Picture
from .buckets import merge_small, nearest_bucket, picture_sizes
from .cache import Cache
from .draws import reals
from .encoding import Encoders, SizeCondition
from .made_hints import Maker, make_hint, maker_key
from .models import multiple_of
from .order import Order
from .pairs import Pair, Size
from .sources import Source
from .views import View, check_aspects

if TYPE_CHECKING:
    from ..config import UNetConfig

CROPS = ("middle", "random")
PLACES = 4
"""So many random crops a pair has, in turn, so that a cache of them comes to an end."""
TEXTS = 64
"""So many embeddings stay in memory: the empty prompt's, and those of data with few prompts."""


@dataclass(frozen=True)
class Batch:
    """What a step is trained on, on one device.

    latents: (B, 4, h, w), scaled for the UNet. hint: (B, 3, 8h, 8w) in [0, 1]. context: embeddings
    (B, tokens, width), of the empty prompt where the prompt is dropped. y: SDXL's vector (B, A).
    names: of the pairs.
    """

    latents: Tensor
    hint: Tensor
    context: Tensor
    y: Tensor | None
    names: tuple[str, ...]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The same on another device, in another type (None: as it is)."""
        tensors = (self.latents, self.hint, self.context)
        latents, hint, context = (tensor.to(device, dtype) for tensor in tensors)
        y = None if self.y is None else self.y.to(device, dtype)
        return Batch(latents, hint, context, y, self.names)


def stand_in(
    unet: UNetConfig, *, count: int = 1, side: int | None = None, tokens: int = 1
) -> Batch:
    """A batch that shows nothing, and is of no pair: the smallest one that the UNet takes.

    count: how many pictures it has; side: theirs, in pixels; tokens: of each text.
    """
    side = side or multiple_of(unet)
    low = side // HINT_SCALE
    return Batch(
        torch.zeros(count, unet.in_channels, low, low),
        torch.zeros(count, 3, side, side),
        torch.zeros(count, tokens, unet.context_dim or 0),
        None if unet.adm_in_channels is None else torch.zeros(count, unet.adm_in_channels),
        (),
    )


@dataclass(frozen=True)
class _Row:
    """A pair as it is seen in one batch, with the prompt that it gets there."""

    pair: Pair
    view: View
    prompt: str


class Batches:
    """The batches of one process, on the CPU. Batch i depends on data, seed, i, rank, world alone.

    Pictures, cached or not, are encoded one by one: a batch is the same, bit for bit, whatever was
    read before, so that a run can be resumed at any batch.

    source: see `open_source`. encoders: see encoding.py. batch_size: of this process.
    resolution: the side in pixels, or (height, width); pictures are scaled to cover it and cut.
    drop_prompt: the share of prompts that are replaced by the empty one (Zhang et al. 2023: half).
    flip: mirrors half of the pairs. Not for stored hints that know left from right, as normal maps
    and poses do; hints that are made here are made of the mirrored picture.
    crop: `middle`, or `random`: one of PLACES for each pair, changing with the epoch.
    buckets: sizes to choose from by a picture's aspect (aspect_buckets), in place of `resolution`.
    rank, world: which of how many processes this is.
    cache: a folder for latents, embeddings and made hints, or a Cache.
    hints: makes the hints of pairs without one, from the target as it is trained on.
    workers: so many threads make batches ahead (0: each is made when it is asked for).

    Raises CldmError for numbers that don't fit, and in use where a pair can't be read.
    """

    def __init__(
        self,
        source: Source,
        encoders: Encoders,
        *,
        batch_size: int,
        resolution: int | Size,
        seed: int,
        drop_prompt: float = 0.5,
        flip: bool = False,
        crop: str = "middle",
        buckets: Sequence[Size] | None = None,
        rank: int = 0,
        world: int = 1,
        cache: str | Path | Cache | None = None,
        hints: Maker | None = None,
        workers: int = 1,
    ) -> None:
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.sizes: tuple[Size, ...] = tuple(buckets) if buckets else (size,)
        _check(len(source), batch_size, self.sizes, seed, drop_prompt, crop, rank, world)
        self.source, self.encoders, self.batch_size = source, encoders, batch_size
        self.seed, self.drop_prompt, self.flip, self.crop = seed, drop_prompt, flip, crop
        self.rank, self.world, self.hints, self.workers = rank, world, hints, workers
        self.cache = cache if isinstance(cache, Cache) else Cache(cache)
        self._maker_key = None if hints is None else maker_key(hints)
        together = batch_size * world
        chosen = None
        if buckets:
            nearest = nearest_bucket(picture_sizes(source, self.cache.folder), self.sizes)
            chosen = merge_small(nearest, self.sizes, together)
        self._order = Order(len(source), together, seed, buckets=chosen, shards=source.shards)
        # Tokenizers can't be used by two threads at once, and models gain nothing by it.
        self._encoding = threading.Lock()
        self._texts = lru_cache(maxsize=TEXTS)(self._read_texts)

    @property
    def per_epoch(self) -> int:
        """How many batches this process gets from every pair once."""
        return self._order.per_epoch

    def __getitem__(self, index: int) -> Batch:
        """Batch number `index`, from 0 without end: epochs follow one another."""
        if index < 0:
            raise CldmError(f"Batch {index} was asked for: batches are counted from 0.")
        rows = self._rows(index)
        seen = [self._seen(row) for row in rows]
        latents, hints, contexts, vectors = zip(*seen, strict=True)
        shapes = {tuple(context.shape) for context in contexts}
        if len(shapes) > 1:
            raise ShapeError(
                f"The text encoder gives embeddings of several shapes {sorted(shapes)}: let it cut "
                "or fill all prompts to one length."
            )
        y = None if vectors[0] is None else torch.stack(vectors)
        names = tuple(row.pair.name for row in rows)
        return Batch(torch.stack(latents), torch.stack(hints), torch.stack(contexts), y, names)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """The batches from number `start` on, without end."""
        if self.workers == 0:
            yield from map(self.__getitem__, itertools.count(start))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            ahead = deque(pool.submit(self.__getitem__, start + n) for n in range(self.workers + 1))
            try:
                for index in itertools.count(start + len(ahead)):
                    batch = ahead.popleft().result()
                    ahead.append(pool.submit(self.__getitem__, index))
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def _rows(self, index: int) -> list[_Row]:
        rows = self._order[index]
        own = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return [
            self._row(int(rows.pairs[row]), rows.epoch, rows.first + row, self.sizes[rows.bucket])
            for row in own
        ]

    def _row(self, number: int, epoch: int, position: int, size: Size) -> _Row:
        # Both are always drawn, so that one setting doesn't change what the other does.
        drop, flip = reals(2, "row", self.seed, epoch, position).tolist()
        place = (0.5, 0.5)
        if self.crop == "random":
            top, left = reals(2, "crop", self.seed, number, epoch % PLACES).tolist()
            place = (top, left)
        pair = self.source[number]
        prompt = "" if drop < self.drop_prompt else pair.prompt
        return _Row(pair, View(size, place, self.flip and flip < 0.5), prompt)

    def _seen(self, row: _Row) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Latents, hint, context and y of one row."""
        target = remember(row.pair.read_target)
        stamp = row.pair.target.stamp()
        seen = [stamp, row.view.size, row.view.place, row.view.flip]
        latents, original = self._latents(row, json.dumps([self.encoders.key, *seen]), target)
        window = row.view.window(original)
        if self.hints is None or row.pair.hint is not None:
            hint = row.pair.read_hint()
            check_aspects(row.pair.named, (hint.shape[0], hint.shape[1]), original)
            hint = window.of_hint(hint)
        else:
            hint = self._made_hint(
                row.pair, json.dumps(seen), lambda: window.of_target(target()), self.hints
            )
        size = SizeCondition(original, window.corner, window.size)
        context, y = self._texts(row.prompt, size if self.encoders.sized else None)
        pixels = torch.from_numpy(hint).permute(2, 0, 1).float() / 255
        return latents, pixels.contiguous(), context, y

    def _latents(self, row: _Row, key: str, target: Callable[[], Picture]) -> tuple[Tensor, Size]:
        """Latents (4, h, w), and the size of the target."""

        def make() -> dict[str, Tensor]:
            picture = target()
            original = (picture.shape[0], picture.shape[1])
            seen = row.view.window(original).of_target(picture)
            pixels = torch.from_numpy(seen).permute(2, 0, 1)[None].float() / 127.5 - 1
            with self._encoding, torch.no_grad():
                latents = self.encoders.latents(pixels).cpu()
            _check_latents(latents, row)
            return {"latents": latents[0].contiguous(), "size": torch.tensor(original)}

        found = self.cache.tensors("latents", key, make)
        height, width = found["size"].tolist()
        return found["latents"], (height, width)

    def _made_hint(
        self, pair: Pair, seen: str, target: Callable[[], Picture], maker: Maker
    ) -> Picture:
        if self._maker_key is None:
            return make_hint(maker, target(), pair.named)
        key = f"{self._maker_key}|{seen}"

        def make() -> bytes:
            return _to_png(make_hint(maker, target(), pair.named))

        stored = self.cache.data("hints", key, make, ".png")
        try:
            return decode_picture(stored, pair.name)
        except CldmError:
            self.cache.forget("hints", key, ".png")
            return decode_picture(self.cache.data("hints", key, make, ".png"), pair.name)

    def _read_texts(self, prompt: str, size: SizeCondition | None) -> tuple[Tensor, Tensor | None]:
        """Context (tokens, width) and y of one prompt; size None: they depend on none."""
        told = size or SizeCondition((0, 0), (0, 0), (0, 0))

        def make() -> dict[str, Tensor]:
            with self._encoding, torch.no_grad():
                context, y = self.encoders.texts([prompt], [told])
            found = {"context": context[0].cpu().contiguous()}
            return found if y is None else {**found, "y": y[0].cpu().contiguous()}

        key = json.dumps([self.encoders.key, prompt, None if size is None else size.numbers])
        found = self.cache.tensors("texts", key, make)
        return found["context"], found.get("y")

    def fill_cache(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Computes now what the cache lacks, this process its share: the models may go after it.

        progress(pair, pairs) is called after each pair. Raises CldmError where there is no cache.
        """
        if self.cache.folder is None:
            raise CldmError(
                "cache is none, but the models that encode go before the first step: leave cache "
                "out, or name a folder."
            )
        own = range(self.rank, len(self.source), self.world)
        for done, number in enumerate(own, 1):
            for row in self._all_rows(number):
                self._seen(row)
            if progress:
                progress(done, len(own))

    def _all_rows(self, number: int) -> Iterator[_Row]:
        """Everything that a pair can become in a batch."""
        size = self.sizes[self._order.bucket_of(number)]
        epochs = range(PLACES if self.crop == "random" else 1)
        views = dict.fromkeys(
            View(row.view.size, row.view.place, flip)
            for row in (self._row(number, epoch, 0, size) for epoch in epochs)
            for flip in ((False, True) if self.flip else (False,))
        )
        pair = self.source[number]
        prompts = {pair.prompt} if self.drop_prompt < 1 else set()
        if self.drop_prompt > 0:
            prompts.add("")
        for view, prompt in itertools.product(views, sorted(prompts)):
            yield _Row(pair, view, prompt)


def _to_png(picture: Picture) -> bytes:
    import cv2

    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def _check_latents(latents: Tensor, row: _Row) -> None:
    height, width = (side // HINT_SCALE for side in row.view.size)
    if latents.ndim != 4 or latents.shape[0] != 1 or latents.shape[2:] != (height, width):
        raise ShapeError(
            f"The autoencoder gave latents {tuple(latents.shape)} for a picture of "
            f"{row.view.size[1]}x{row.view.size[0]}, expected (1, 4, {height}, {width})."
        )
    if not latents.isfinite().all():
        raise CldmError(
            f"{row.pair.named}: its latents hold NaN or infinite values. Does the autoencoder run "
            "in float16? SDXL's needs float32 or bfloat16."
        )


def _check(
    pairs: int,
    batch_size: int,
    sizes: Sequence[Size],
    seed: int,
    drop_prompt: float,
    crop: str,
    rank: int,
    world: int,
) -> None:
    if not pairs:
        raise CldmError("The data set holds no pair: there is nothing to train on.")
    if batch_size < 1 or not 0 <= rank < world:
        raise CldmError(
            f"Batches of {batch_size} for process {rank} of {world} were asked for: expected at "
            "least 1, and processes counted from 0."
        )
    for size in sizes:
        if min(size) < HINT_SCALE or any(side % HINT_SCALE for side in size):
            raise ShapeError(
                f"The pictures were to be {size[1]}x{size[0]}: both sides must be multiples of "
                f"{HINT_SCALE}, and of 64 for most UNets."
            )
    if not 0 <= drop_prompt <= 1:
        raise CldmError(f"drop_prompt is {drop_prompt:g}, expected a share from 0 to 1.")
    if crop not in CROPS:
        raise CldmError(f"crop is {crop!r}, expected one of {', '.join(CROPS)}.")
    if seed < 0:
        raise CldmError(f"The seed is {seed}, expected a whole number from 0.")
