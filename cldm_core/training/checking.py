"""The data of a run looked through before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable

from .config import TrainConfig
from .doctor import Report, check
from .models import resolution_of, unet_of
from .plan import named_annotator, open_data, sizes_of


def check_data(
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
    *,
    limit: int | None = None,
) -> Report:
    """What the doctor finds in the data, as the run would see it; raises CldmError for no data.

    limit: looks at so many pairs, taken at random, in place of all.
    """
    unet = unet_of(config).config
    side = resolution_of(config, unet)
    source = open_data(config, side)
    return check(
        source,
        resolution=side,
        buckets=sizes_of(config, side, unet),
        hints=named_annotator(config),
        limit=limit,
        progress=progress,
    )
