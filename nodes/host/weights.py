"""The base model's weights as the host computes with them, LoRAs and all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...cldm_core.checkpoint.formats import UNET
from ...cldm_core.eight_bits import is_8_bit, widened
from ...cldm_core.weights import TWIN_PARTS


class BaseModelWeights:
    """A lookup of a base model's weights by key, for nets that build upon them.

    Each call asks the model anew, so what patches change is seen, and nothing is kept. Where the
    host leaves weights on the CPU it patches them only when a layer runs; so does this.
    """

    def __init__(self, diffusion_model: torch.nn.Module) -> None:
        self.model = diffusion_model

    def __call__(self, key: str) -> Tensor:
        """The patched weight; raises KeyError for one that the model doesn't have."""
        path, _, name = key.rpartition(".")
        try:
            layer = self.model.get_submodule(path)
            value: Any = getattr(layer, name)
        except AttributeError:
            value = None
        if value is None:
            raise KeyError(key)
        return patched(layer, name, plain(layer, name, value))


def plain(layer: Any, name: str, value: Any) -> Tensor:
    """The numbers of a weight that is stored in 8 bits with a scale; any other as it is."""
    if type(value) not in (Tensor, torch.nn.Parameter) and hasattr(value, "dequantize"):
        dequantized: Tensor = value.dequantize()
        return dequantized
    scale = getattr(layer, "scale_weight", None)
    if name == "weight" and scale is not None and is_8_bit(value.dtype):
        return widened(value, scale, name, "The base model")
    return value  # type: ignore[no-any-return]


def patched(layer: Any, name: str, value: Tensor) -> Tensor:
    """The weight with the patches that the host has put off until the layer runs."""
    # In the host's order: a model's own patches, then what wraps its layers.
    functions: list[Any] = [*_some(getattr(layer, f"{name}_lowvram_function", None))]
    functions += _some(getattr(layer, f"{name}_function", None))
    if not functions:
        return value
    # The patches work in place, and nothing can be added in types of 8 bits.
    dtype = torch.float32 if is_8_bit(value.dtype) else value.dtype
    value = value.to(comfy.model_management.get_torch_device(), dtype, copy=True)
    for function in functions:
        value = function(value)
    return value


def _some(found: Any) -> Iterable[Any]:
    if found is None:
        return ()
    return found if isinstance(found, (list, tuple)) else (found,)


def model_weights(model: Any) -> dict[str, Tensor]:
    """What a ControlNet copies of a MODEL's UNet, by key, on the CPU and with the model's patches.

    On a machine that computes on the CPU they are the model's own tensors: use them at once, and
    don't change them.
    """
    comfy.model_management.load_models_gpu([model])
    unet = model.model.diffusion_model
    lookup = BaseModelWeights(unet)
    # The decoder's first weight is what a UNet is recognised by.
    wanted = (key for key in unet.state_dict() if key.startswith(TWIN_PARTS) or key == UNET)
    return {key: lookup(key).cpu() for key in wanted}
