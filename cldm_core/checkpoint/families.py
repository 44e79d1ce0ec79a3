"""How the nets of each kind of file are made: keys, configuration, class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..bound import Base
from ..config import ControlNetConfig
from ..control_lora import (
    canonical_control_lora,
    canonical_difference,
    control_lora,
    difference_net,
)
from ..controlnet import ControlNet
from ..lllite import ControlLLLite, LLLiteConfig
from ..t2i_adapter import AdapterConfig, T2IAdapter
from ..union import UnionConfig, UnionControlNet
from .detect import controlnet_config
from .detect_bound import control_lora_config, difference_config
from .detect_lllite import lllite_config
from .detect_t2i import canonical_t2i, t2i_config
from .detect_union import union_config
from .keymap import DIFFUSERS_CONTROL, to_cldm
from .read import StateDict


@dataclass(frozen=True)
class Family:
    """One way of control.

    `kind` names its configurations in a file's metadata. `canonical` gives the keys that the net's
    attributes have, and `config_of` reads the configuration from them. A net on its own is built by
    `net(config, ops, attention=...)` and then filled; one that is `bound` to a base model's weights
    by `net(state, config, attention=...)`, and the base may help to tell its configuration.
    """

    kind: str
    config: type[Any]
    canonical: Callable[[StateDict], StateDict]
    config_of: Callable[[StateDict, Base | None], Any]
    net: Callable[..., nn.Module]
    bound: bool = False


def _same(state: StateDict) -> StateDict:
    return state


def _from_diffusers(state: StateDict) -> StateDict:
    return to_cldm(state) if DIFFUSERS_CONTROL in state else state


def _alone(config_of: Callable[[StateDict], Any]) -> Callable[[StateDict, Base | None], Any]:
    return lambda state, _: config_of(state)


_PLAIN = Family(
    "controlnet", ControlNetConfig, _from_diffusers, _alone(controlnet_config), ControlNet
)

FAMILIES = {
    "cldm": _PLAIN,
    "diffusers": _PLAIN,
    "union": Family("union", UnionConfig, _from_diffusers, _alone(union_config), UnionControlNet),
    "t2i_adapter": Family(
        "t2i_adapter", AdapterConfig, canonical_t2i, _alone(t2i_config), T2IAdapter
    ),
    "lllite": Family("lllite", LLLiteConfig, _same, _alone(lllite_config), ControlLLLite),
    "control_lora": Family(
        "controlnet",
        ControlNetConfig,
        lambda state: canonical_control_lora(state)[0],
        control_lora_config,
        control_lora,
        bound=True,
    ),
    "difference": Family(
        "controlnet",
        ControlNetConfig,
        lambda state: canonical_difference(state)[0],
        difference_config,
        difference_net,
        bound=True,
    ),
}
"""By the name of the format (formats.py)."""
