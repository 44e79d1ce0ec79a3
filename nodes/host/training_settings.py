"""The settings of a run that a node starts: its inputs, its box `more`, and its data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths

from ...cldm_core import CldmError
from ...cldm_core.training.config import CIRCLES, TrainConfig
from ...cldm_core.training.options import parse_yaml

OF_DATASET, OF_GRAPH = "Control Dataset", "what is connected to the node"
ELSEWHERE = {
    **dict.fromkeys(("data", "conditioning", "columns", "circles", "annotator"), OF_DATASET),
    **dict.fromkeys(("base", "tokenizer", "prediction"), OF_GRAPH),
    "out": "the node's name",
    "device": "ComfyUI",
    "lr": "the node's learning_rate",
}
"""Settings of the command line that mean nothing in the node's box, and what sets them."""


def config_of(
    settings: Mapping[str, Any], more: str, *, base: str, circles: bool, annotator: str | None
) -> TrainConfig:
    """All settings of a run; those of the box count more.

    base: what the run's record calls the MODEL; circles: whether the pairs are drawn ones;
    annotator: the name of what makes their hints. Raises CldmError for what is unknown, wrong, or
    set elsewhere.
    """
    config = TrainConfig.of({**settings, **_further(more)})
    return replace(
        config,
        base=base,
        # What there is beside drawn circles has no name that the command line knows.
        data=CIRCLES if circles else "the graph's",
        annotator=None if annotator is None else f"annotators:{annotator}",
        init=None if config.init is None else str(_net_file(config.init)),
    )


def _net_file(name: str) -> Path:
    """A net to go on from, by its name in the host's `controlnet` folders or by its path."""
    found = Path(folder_paths.get_full_path("controlnet", name) or name).expanduser()
    if not found.is_file():
        raise CldmError(
            f"more: init is {name!r}, and there is no such net: give the name of a file in "
            f"models/controlnet, such as my_controlnet.safetensors, or a whole path."
        )
    return found


def _further(more: str) -> dict[str, Any]:
    given = parse_yaml(more, "more")
    for name in given:
        if name in ELSEWHERE:
            raise CldmError(f"more: {name} is set by {ELSEWHERE[name]}, not here: remove the line.")
    return given
