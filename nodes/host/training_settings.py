"""The settings of a run that a node starts: its inputs, its box `more`, and its data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...cldm_core import CldmError
from ...cldm_core.training.config import CIRCLES, TrainConfig
from ...cldm_core.training.options import parse_yaml
from ...cldm_core.training.scores import score_for

OF_DATASET, OF_GRAPH = "Control Dataset", "what is connected to the node"
ELSEWHERE = {
    **dict.fromkeys(("data", "conditioning", "columns", "circles", "annotator"), OF_DATASET),
    **dict.fromkeys(("base", "tokenizer"), OF_GRAPH),
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
    # What there is beside drawn circles has no name that the command line knows.
    config = replace(config, base=base, data=CIRCLES if circles else "the graph's")
    if config.score is None and config.evaluate_every and annotator is not None:
        config = replace(config, score=score_for(f"annotators:{annotator}").name)
    return config


def _further(more: str) -> dict[str, Any]:
    given = parse_yaml(more, "more")
    for name in given:
        if name in ELSEWHERE:
            raise CldmError(f"more: {name} is set by {ELSEWHERE[name]}, not here: remove the line.")
    return given
