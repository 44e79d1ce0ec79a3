"""The bar of a node that runs."""

from __future__ import annotations

from collections.abc import Callable

import comfy.utils


def progress_bar() -> Callable[[int, int], None]:
    """Moves the node's bar, told as (done, total); the host ends an interrupted graph there."""
    bar = comfy.utils.ProgressBar(1)

    def move(done: int, total: int) -> None:
        bar.update_absolute(done, total)

    return move
