"""Seeded weights for the tests that loop over all annotators: name -> function(give)."""

from collections.abc import Callable
from typing import Any

from controlnet_pack.annotators import ANNOTATORS

from . import line_nets, tiny_nets


def _line_net(name: str) -> Callable[[Any], None]:
    """Gives the annotator's seeded weights at full size; only for small networks."""
    return _first(name, lambda: line_nets.weights(name))


def _all(name: str, tensors: Callable[[], Any]) -> Callable[[Any], None]:
    """Gives what `tensors()` makes as each of the annotator's weights."""
    return lambda give: [give(weights, tensors()) for weights in ANNOTATORS[name].weights]


def _zoe(give: Any) -> None:
    """The net of two domains, and that of one."""
    for weights, domains in zip(ANNOTATORS["zoe"].weights, (2, 1), strict=True):
        give(weights, tiny_nets.zoe(domains))


def _first(name: str, tensors: Callable[[], Any]) -> Callable[[Any], None]:
    """Gives what `tensors()` makes as the first weights of the annotator."""
    return lambda give: give(ANNOTATORS[name].weights[0], tensors())


SEEDED: dict[str, Callable[[Any], None]] = {
    "depth_anything": _all("depth_anything", tiny_nets.depth_anything),
    "depth_anything_v2": _all("depth_anything_v2", tiny_nets.depth_anything),
    "midas": _first("midas", tiny_nets.midas),
    "midas_normal": _first("midas_normal", tiny_nets.midas),
    "normal_bae": _first("normal_bae", tiny_nets.normal_bae),
    "segments": _first("segments", tiny_nets.segments),
    "mlsd": _line_net("mlsd"),
    "pidinet": _line_net("pidinet"),
    "teed": _line_net("teed"),
    "zoe": _zoe,
}
