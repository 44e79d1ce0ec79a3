"""Models of transformers, filled from a file of weights; nothing is fetched or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import Unavailable


def filled(
    model: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    *,
    unused: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> nn.Module:
    """`model(config)` with these tensors; transformers gives the public names their own places.

    unused: beginnings of names in the file that the model has no place for. optional: ends of names
    that only the file or only the model has, by the version of transformers. Raises Unavailable
    with a name that is missing, too much, or of another shape.
    """
    usable = {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if not (unused and name.startswith(unused))
    }
    with _silent():
        net, report = model.from_pretrained(
            None,
            config=config,
            state_dict=usable,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for what, names in (
        ("lacks", report["missing_keys"]),
        ("has an unknown", report["unexpected_keys"]),
        # Names alone in transformers 4, with both shapes in 5.
        (
            "has another shape for",
            [one if isinstance(one, str) else one[0] for one in report["mismatched_keys"]],
        ),
    ):
        names = [name for name in names if not name.endswith(optional)]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise Unavailable(f"The file of weights {what} {min(names)}{more}: another file?")
    filled_net: nn.Module = net
    return filled_net


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bar and the table that transformers prints while it loads."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
