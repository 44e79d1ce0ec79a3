"""Control-LoRAs and difference ControlNets: nets that store only what differs from a base model."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

from . import bound
from .attention import Attention, sdpa
from .blocks import SpatialTransformer, TimestepEmbedSequential
from .bound import Base, BaseWeights, Composed, product_shape
from .config import ControlNetConfig
from .controlnet import ControlNet
from .errors import CheckpointMismatch, FamilyMismatch, listed

LORA_MARKER = "lora_controlnet"
DIFFERENCE_MARKER = "difference"
DIFFERENCE_PREFIX = "control_model."
OWN_PARTS = ("input_hint_block.", "zero_convs.", "middle_block_out.")
"""What a ControlNet has and its base hasn't; files store it whole."""

M = TypeVar("M", bound=nn.Module)
Stored = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class BoundControlNet(ControlNet):
    """A ControlNet whose layers add a file's tensors to those of a base model at each call.

    stored: the file's tensors by canonical key, which become the parameters as they are, so that
    state_dict() gives the same keys back. With `difference`, a stored weight or bias is added to
    the base's, else it takes its place; `<layer>.up` times `<layer>.down` is always added; what the
    file leaves out is the base's. Until it is bound the net encodes hints and computes nothing
    else. Raises CheckpointMismatch where keys or shapes don't fit the configuration.
    """

    def __init__(
        self,
        config: ControlNetConfig,
        stored: Stored,
        *,
        difference: bool = False,
        attention: Attention = sdpa,
    ) -> None:
        super().__init__(config, bound, attention=attention)
        layers = dict(composed_layers(self))
        by_layer = require_stored_fit(
            {path: layer.shapes for path, layer in layers.items()}, stored, difference=difference
        )
        for path, layer in layers.items():
            layer.take(path, by_layer[path], twin=_has_twin(path), difference=difference)

    def bind(self, base: Base | None) -> BoundControlNet:
        """A view of this net upon a base model's UNet: `net = net.bind(base)`.

        The view shares all parameters with this net, and stays valid when they are moved; this net
        itself stays as it is, so that several views of one file can have bases of their own. base:
        the weights by the UNet's keys, without prefix or (mappings only) behind `diffusion_model.`
        or `model.diffusion_model.`, in any type and on any device; they are looked up at each use.
        None gives an unbound view, which holds no base in memory. Raises FamilyMismatch where keys
        or shapes don't fit.
        """
        weights = None if base is None else BaseWeights(base)
        if weights is not None:
            self._check(weights)
        return _view(self, weights)

    @property
    def is_bound(self) -> bool:
        """Whether it has a base, so that it can compute residuals."""
        return next(layer for _, layer in composed_layers(self)).base is not None

    def _check(self, base: BaseWeights) -> None:
        for key, shape in needed_from_base(self).items():
            found = base.shape(key)
            if found != shape:
                raise FamilyMismatch(
                    f"The base model's {key} is {tuple(found)} and this net builds upon "
                    f"{tuple(shape)}: the base is of another family than the one that the net was "
                    f"made for."
                )
        for key in _beyond(self):
            if base.has(key):
                raise FamilyMismatch(
                    f"The base model has {key} and this net has no such layer: the base is of "
                    f"another family, or the file leaves the layer out, and then it must be loaded "
                    f"with base= or config=."
                )


def control_lora(
    state: Stored, config: ControlNetConfig, *, attention: Attention = sdpa
) -> BoundControlNet:
    """The unbound net of a Control-LoRA's canonical tensors (Stability AI's format)."""
    return BoundControlNet(config, state, attention=attention)


def difference_net(
    state: Stored, config: ControlNetConfig, *, attention: Attention = sdpa
) -> BoundControlNet:
    """The unbound net of a difference file's canonical tensors.

    After extract_controlnet_diff.py of Mikubill/sd-webui-controlnet, which leaves out weights that
    equal the base's.
    """
    return BoundControlNet(config, state, difference=True, attention=attention)


def needed_from_base(net: BoundControlNet) -> dict[str, tuple[int, ...]]:
    """The shapes of what the net asks its base for, by the UNet's keys, in the order of layers."""
    return {
        f"{path}.{name}": shape
        for path, layer in composed_layers(net)
        for name, shape in layer.shapes.items()
        if name in layer.from_base
    }


def canonical_control_lora(state: Stored) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A Control-LoRA's tensors by our keys, and the keys of the file that carry none.

    These are the marker and, as in ComfyUI, keys with a double underscore.
    """
    dropped = tuple(key for key in state if key == LORA_MARKER or "__" in key)
    return {key: value for key, value in state.items() if key not in dropped}, dropped


def canonical_difference(state: Stored) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A difference file's tensors by our keys, and the keys of the file that are left out.

    These are the marker and, in a file with the prefix `control_model.`, keys without it.
    """
    prefix = DIFFERENCE_PREFIX if any(key.startswith(DIFFERENCE_PREFIX) for key in state) else ""
    kept = [key for key in state if key.startswith(prefix) and key != DIFFERENCE_MARKER]
    dropped = tuple(key for key in state if key not in set(kept))
    return {key.removeprefix(prefix): state[key] for key in kept}, dropped


def composed_layers(net: nn.Module) -> Iterator[tuple[str, Composed]]:
    """The layers that have weights, with their paths."""
    for path, module in net.named_modules():
        if isinstance(module, Composed):
            yield path, module


def _has_twin(path: str) -> bool:
    return not path.startswith(OWN_PARTS)


def require_stored_fit(
    layers: Mapping[str, Shapes], stored: Stored, *, difference: bool
) -> dict[str, dict[str, Tensor]]:
    """The stored tensors by layer and name; raises CheckpointMismatch where they don't fit.

    layers: the shapes of the whole net's weights, by layer and name.
    """
    by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in stored.items():
        path, _, name = key.rpartition(".")
        by_layer[path][name] = value
    problems = [f"unexpected {key}" for key in stored if key.rpartition(".")[0] not in layers]
    for path, shapes in layers.items():
        ranked = _has_twin(path) and not difference
        problems += _problems(path, shapes, by_layer[path], ranked=ranked)
    if problems:
        raise CheckpointMismatch(
            f"The file doesn't fit the net that its configuration describes: "
            f"{listed(problems, between='; ')}."
        )
    return by_layer


def _problems(path: str, shapes: Shapes, stored: Stored, *, ranked: bool) -> Iterator[str]:
    """What doesn't fit, in the words of a list; `ranked`: whether up and down may be there."""
    pair = {"up", "down"} if ranked and "weight" in shapes else set()
    for name in stored.keys() - shapes.keys() - pair:
        yield f"unexpected {path}.{name}"
    for name in pair - stored.keys() if pair & stored.keys() else ():
        yield f"missing {path}.{name}"
    if not _has_twin(path):
        for name in shapes.keys() - stored.keys():
            yield f"missing {path}.{name}, which no base model has"
    for name, shape in shapes.items():
        if name in stored and tuple(stored[name].shape) != tuple(shape):
            yield f"{path}.{name} is {tuple(stored[name].shape)} instead of {tuple(shape)}"
    if pair and pair <= stored.keys():
        product = product_shape(path, stored["up"], stored["down"])
        expected = shapes["weight"]
        # As in the host, a linear layer's product may come in the shape of a 1x1 convolution.
        if product[0] != expected[0] or math.prod(product) != math.prod(expected):
            yield f"{path}.up times .down is {product} instead of {tuple(expected)}"


def _beyond(net: BoundControlNet) -> Iterator[str]:
    """Keys that a base has only where its encoder holds more than the net's."""
    if net.config.unet.adm_in_channels is None:
        yield "label_emb.0.0.weight"
    yield f"input_blocks.{len(net.input_blocks)}.0.in_layers.0.weight"
    yield f"input_blocks.{len(net.input_blocks)}.0.op.weight"
    for path, module in net.named_modules():
        if isinstance(module, SpatialTransformer):
            yield f"{path}.transformer_blocks.{len(module.transformer_blocks)}.norm1.weight"
        elif isinstance(module, TimestepEmbedSequential) and len(module) == 1:
            yield f"{path}.1.norm.weight"


def _view(module: M, base: BaseWeights | None) -> M:
    """The same module tree once more, over the very same dictionaries of parameters."""
    view = copy.copy(module)
    if isinstance(view, Composed):
        view.base = base
    view._modules = {
        name: None if child is None else _view(child, base)
        for name, child in module._modules.items()
    }
    return view
