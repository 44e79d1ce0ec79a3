"""Keys that tell the graph's models apart, whatever the host has loaded of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...cldm_core.training.encoding import fingerprint


def key_of(patcher: Any, prefix: str = "") -> str:
    """A digest of a model's weights and of its patches, such as LoRAs.

    It doesn't tell whether the host has put the patches into the weights. prefix: of the weights
    that count.
    """
    return fingerprint(_Given(patcher, prefix))


def base_name(model: Any) -> str:
    """What the record of a run calls its MODEL: the host's kind of it, and its UNet's key."""
    return f"{type(model.model.model_config).__name__}-{key_of(model, 'diffusion_model.')}"


@dataclass(frozen=True)
class _Given:
    """A model as its file and the graph gave it, in the form that `fingerprint` reads."""

    patcher: Any
    prefix: str

    def state_dict(self) -> dict[str, Tensor]:
        """The weights without patches, and what is in the patches."""
        found: dict[str, Tensor] = dict(self.patcher.model_state_dict(self.prefix))
        # What the host keeps while patches are in a model's weights; its clones share it.
        kept = {key: one.weight for key, one in self.patcher.backup.items() if key in found}
        found.update(kept)
        unknown = str(self.patcher.patches_uuid)
        for key, patches in self.patcher.patches.items():
            if key.startswith(self.prefix):
                found.update(_named(f"{key} patched", patches, unknown))
        return found


def _named(name: str, value: Any, unknown: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a patch, by names that hold the rest of it: numbers and kinds of adapters.

    unknown: stands for what can't be told by its contents, such as functions.
    """
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _named(f"{name}/{index}", part, unknown)
    elif hasattr(value, "weights"):
        yield from _named(f"{name}/{type(value).__name__}", value.weights, unknown)
    else:
        told = value if value is None or isinstance(value, (str, int, float)) else unknown
        yield f"{name}={told}", torch.empty(0)
