"""Small networks for the tests that loop over all annotators: name -> function(give, patch).

Most are seeded weights; what needs a package of its own is a stand-in (standins.py).
"""

from collections.abc import Callable
from typing import Any

import pytest

from controlnet_pack.annotators import ANNOTATORS

from . import line_nets, standins, tiny_nets

Seed = Callable[[Any, pytest.MonkeyPatch], None]


def _line_net(name: str) -> Seed:
    """Gives the annotator's seeded weights; the wide networks are made narrow."""

    def seed(give: Any, patch: pytest.MonkeyPatch) -> None:
        standins.narrow(patch)
        shapes = line_nets.shapes_of(line_nets.empty(name))
        for weights in ANNOTATORS[name].weights:
            give(weights, line_nets.weights_of(name, shapes))

    return seed


def _all(name: str, tensors: Callable[[], Any]) -> Seed:
    """Gives what `tensors()` makes as each of the annotator's weights."""
    return lambda give, _: [give(weights, tensors()) for weights in ANNOTATORS[name].weights]


def _zoe(give: Any, _: pytest.MonkeyPatch) -> None:
    """The net of two domains, and that of one."""
    for weights, domains in zip(ANNOTATORS["zoe"].weights, (2, 1), strict=True):
        give(weights, tiny_nets.zoe(domains))


def _oneformer(give: Any, _: pytest.MonkeyPatch) -> None:
    """Nets of 150 and of 133 classes."""
    for weights in ANNOTATORS["oneformer"].weights:
        give(weights, tiny_nets.oneformer(133 if "coco" in weights.repository else 150))


def _stand_in(name: str) -> Seed:
    return lambda _, patch: getattr(standins, name)(patch)


LINES = ("hed", "lineart", "lineart_anime", "manga_line", "mlsd", "pidinet", "teed")
STAND_INS = ("animal_pose", "blazepose", "dwpose", "face_mesh", "openpose", "person", "salient")

SEEDED: dict[str, Seed] = {
    "depth_anything": _all("depth_anything", tiny_nets.depth_anything),
    "depth_anything_v2": _all("depth_anything_v2", tiny_nets.depth_anything),
    "midas": _all("midas", tiny_nets.midas),
    "midas_normal": _all("midas_normal", tiny_nets.midas),
    "normal_bae": _all("normal_bae", tiny_nets.normal_bae),
    "oneformer": _oneformer,
    "segments": _all("segments", tiny_nets.segments),
    "uniformer": _all("uniformer", tiny_nets.uniformer),
    "zoe": _zoe,
    **{name: _line_net(name) for name in LINES},
    **{name: _stand_in(name) for name in STAND_INS},
}
