"""What can be trained: a ControlNet, the UNet's decoder with it, a Control-LoRA, an LLLite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checkpoint.load import load_control
from ..checkpoint.read import Checkpoint, Source, read
from ..checkpoint.write import config_metadata
from ..config import ControlNetConfig, UNetConfig
from ..control_lora import LORA_MARKER, OWN_PARTS, BoundControlNet, control_lora
from ..controlnet import ControlNet
from ..errors import CldmError
from ..lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from ..matching import check_family
from ..projections import Projection, projections
from ..surgery import add_control
from ..unet import ControlledUNet
from .frozen import HALF
from .lean_layers import lean, plain

Kind = Literal["controlnet", "control_lora", "lllite"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RANKS = {"control_lora": 128, "lllite": 64}
"""What Stability AI's smaller Control-LoRAs have, and kohya's network_dim."""
COND_EMB_DIM = 32
"""Width of a ControlNet-LLLite's tokens, as kohya trains them."""
NOUNS = {
    "controlnet": "a ControlNet",
    "control_lora": "a Control-LoRA",
    "lllite": "a ControlNet-LLLite",
}


@dataclass(frozen=True, eq=False)
class Trainable:
    """A net with the UNet that it learns to steer, both in the layers that they train in.

    unet and net are what `training_loss` takes, wrapped or not; only_mid_control goes to it too.
    Only parameters() require gradients.
    """

    kind: Kind
    unet: ControlledUNet
    net: Any
    only_mid_control: bool = False
    sd_locked: bool = True

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer gets: the net's weights, then those of the UNet that train."""
        both: tuple[nn.Module, ...] = (self.net, self.unet)
        return [weight for module in both for weight in module.parameters() if weight.requires_grad]

    def plain(self) -> Trainable:
        """The same weights in PyTorch's own layers, which keep more and compute nothing twice."""
        return replace(self, unet=plain(self.unet), net=plain(self.net))

    def state_dict_to_save(self) -> dict[str, Tensor]:
        """The net's weights as files have them, which load_control reads back.

        They are the net's own tensors: write or copy them before the next step.
        """
        state: dict[str, Tensor] = dict(self.net.state_dict())
        return {LORA_MARKER: torch.zeros(0), **state} if self.kind == "control_lora" else state

    def metadata(self) -> dict[str, str]:
        """The file's metadata, with the net's configuration."""
        config = self.net.config
        if isinstance(config, ControlNetConfig):
            # What the base predicts few nets say that are gone on from.
            prediction = self.unet.config.prediction
            config = replace(config, unet=replace(config.unet, prediction=prediction))
        return config_metadata(config)

    def unet_state_dict_to_save(self) -> dict[str, Tensor] | None:
        """The UNet's weights where its decoder trains too, under the original's keys; else None."""
        return None if self.sd_locked else dict(self.unet.state_dict())

    def unet_metadata(self) -> dict[str, str]:
        """The metadata of a file of the UNet, with its configuration."""
        return config_metadata(self.unet.config)


def make_trainable(
    kind: Kind,
    unet: ControlledUNet,
    *,
    init: Source | nn.Module | None = None,
    sd_locked: bool = True,
    only_mid_control: bool = False,
    rank: int | None = None,
    checkpointing: bool = False,
    hint_channels: int = 3,
) -> Trainable:
    """What is trained of a net of this kind on this UNet, and the rest frozen.

    kind: "controlnet", or the cheap "control_lora" (matrices of low rank on the copied encoder) and
    "lllite" (small nets at the encoder's attentions). init: None for a new net, which changes
    nothing at first; a file or state dict, whose numbers are copied; or a net, which itself is
    trained on. sd_locked: False trains the UNet's output blocks and `out` too, as cldm.py's
    configure_optimizers of lllyasviel/ControlNet does; the paper does so at the end, at a low
    learning rate. only_mid_control: the net's zero convolutions of the skip connections are zero
    and don't train, in an `init` too, so that the net steers as it was trained. rank: of a new
    Control-LoRA (128), width of a new LLLite (64). checkpointing: blocks are computed twice, which
    takes less memory.

    The UNet's weights are shared, not copied: this sets which of them require gradients, and with
    sd_locked=False training changes them. A net in half precision becomes fp32. New numbers are
    drawn from PyTorch's generator. Raises CldmError, or FamilyMismatch where init and UNet are of
    different families.
    """
    _check(kind, unet, init, rank, sd_locked=sd_locked, only_mid_control=only_mid_control)
    if init is None:
        new = {"controlnet": _new_controlnet, "control_lora": _new_lora, "lllite": _new_lllite}
        net = new[kind](unet, hint_channels, rank or RANKS.get(kind, 0))
    else:
        base = _base(unet)
        net = init if isinstance(init, nn.Module) else _loaded(init, base)
        net = net.bind(base) if isinstance(net, BoundControlNet) else net
        _require_kind(net, kind)
        check_family(net, unet.config)
    _require_trainable_numbers(net)
    weight = next(unet.parameters())
    net.to(weight.device, torch.float32 if _is_half(net) else None).requires_grad_(True)
    if only_mid_control:
        skips: Any = net.zero_convs
        for weight in skips.parameters():
            weight.requires_grad_(False).zero_()
    unet.requires_grad_(False)
    if not sd_locked:
        unet.output_blocks.requires_grad_(True)
        unet.out.requires_grad_(True)
    return Trainable(
        kind,
        lean(unet, checkpointing=checkpointing).train(not sd_locked),
        lean(net, checkpointing=checkpointing).train(),
        only_mid_control,
        sd_locked,
    )


def _new_controlnet(unet: ControlledUNet, hint_channels: int, _: int) -> nn.Module:
    return add_control(unet, hint_channels=hint_channels)


def _new_lora(unet: ControlledUNet, hint_channels: int, rank: int) -> nn.Module:
    """Matrices whose product is zero; norms and biases are copies of the base's."""
    state: dict[str, Tensor] = {}
    for key, value in add_control(unet, hint_channels=hint_channels).state_dict().items():
        if key.startswith(OWN_PARTS) or value.ndim < 2:
            state[key] = value.float()
            continue
        path, fan_in = key.removesuffix(".weight"), value[0].numel()
        inner = min(rank, len(value), fan_in)
        ones = [1] * (value.ndim - 2)
        down = torch.empty(inner, *value.shape[1:], device=value.device)
        state[f"{path}.up"] = torch.zeros(len(value), inner, *ones, device=value.device)
        state[f"{path}.down"] = down.uniform_(-1, 1) / math.sqrt(fan_in)
    config = ControlNetConfig(unet.config, hint_channels)
    return control_lora(state, config).bind(_base(unet))


def _new_lllite(unet: ControlledUNet, hint_channels: int, width: int) -> nn.Module:
    return ControlLLLite(lllite_for(unet.config, mlp_dim=width, hint_channels=hint_channels))


def lllite_for(
    unet: UNetConfig,
    *,
    mlp_dim: int = 64,
    cond_emb_dim: int = COND_EMB_DIM,
    hint_channels: int = 3,
) -> LLLiteConfig:
    """The ControlNet-LLLite that kohya's sd-scripts train: at all attentions before the decoder.

    A module for the queries, keys and values of self-attention and the queries of cross-attention;
    the hint's tokens are those of the level. Raises CldmError for a UNet without such places.
    """
    widths = projections(unet)
    places = [(place, path) for path in widths if (place := Projection.parse(path)) is not None]
    modules = tuple(
        LLLiteModuleConfig(path, widths[path], _depth(place, unet), cond_emb_dim, mlp_dim)
        for place, path in sorted(places, key=_order)
        if _steered(place, unet)
    )
    if not modules:
        raise CldmError(
            "This UNet has no attention in front of its decoder, so no ControlNet-LLLite can steer "
            "it: train a ControlNet."
        )
    return LLLiteConfig(modules, hint_channels)


def _order(one: tuple[Projection, str]) -> tuple[bool, int, int, str, str]:
    """That in which files are read."""
    place, _ = one
    return place.kind != "input", place.block, place.transformer, place.attention, place.role


def _steered(place: Projection, unet: UNetConfig) -> bool:
    reads_text = bool(unet.disable_self_attentions) or unet.disable_middle_self_attn
    own = place.role == "q" or (place.attention == "attn1" and not reads_text)
    return own and place.kind != "output"


def _depth(place: Projection, unet: UNetConfig) -> int:
    """1, 2 or 3 for tokens of 8, 16 or 32 pixels."""
    if place.kind == "middle":
        return min(len(unet.channel_mult), 3)
    levels = [level for level, count in enumerate(unet.num_res_blocks) for _ in range(count + 1)]
    return min(levels[place.block - 1] + 1, 3)


def _base(unet: ControlledUNet) -> Mapping[str, Tensor]:
    # Parameters, not their values: they stay the same ones when the UNet is moved.
    return dict(unet.named_parameters())


def _loaded(source: Source, base: Mapping[str, Tensor]) -> nn.Module:
    """The net of a file or state dict, in memory of its own."""
    checkpoint = read(source)
    copied = {key: value.clone() for key, value in checkpoint.tensors.items()}
    own = Checkpoint(copied, checkpoint.metadata, checkpoint.name)
    net: nn.Module = load_control(own, base=base)
    return net


def _require_kind(net: nn.Module, kind: Kind) -> None:
    found = next((name for name, is_one in _CLASSES.items() if is_one(net)), None)
    if found is None:
        raise CldmError(
            f"The net to start from is a {type(net).__name__}, and only ControlNets, Control-LoRAs "
            f"and ControlNet-LLLites can be trained: apply a difference file to its base first, "
            f"or start from the base model alone."
        )
    if found != kind:
        raise CldmError(
            f"The net to start from is {NOUNS[found]}, and {NOUNS[kind]} is to be trained: set the "
            f"kind to {found!r}, or start from another net."
        )


def _is_lora(net: nn.Module) -> bool:
    return isinstance(net, BoundControlNet) and any(k.endswith(".up") for k in net.state_dict())


_CLASSES: dict[str, Callable[[nn.Module], bool]] = {
    "control_lora": _is_lora,
    "controlnet": lambda net: isinstance(net, ControlNet) and not isinstance(net, BoundControlNet),
    "lllite": lambda net: isinstance(net, ControlLLLite),
}


def _check(
    kind: Kind,
    unet: ControlledUNet,
    init: object,
    rank: int | None,
    *,
    sd_locked: bool,
    only_mid_control: bool,
) -> None:
    if kind not in KINDS:
        raise CldmError(f"The kind to train is {kind!r}, expected one of {', '.join(KINDS)}.")
    if rank is not None and (rank < 1 or kind not in RANKS or init is not None):
        raise CldmError(
            f"The rank is {rank}: give a whole number from 1, and only for a new Control-LoRA or "
            f"ControlNet-LLLite."
        )
    if only_mid_control and kind == "lllite":
        raise CldmError(
            "only_mid_control is on, and a ControlNet-LLLite has no residuals: turn it off."
        )
    _require_trainable_numbers(unet)
    if not sd_locked and _is_half(unet):
        raise CldmError(
            "The UNet's decoder is to be trained (sd_locked is off), and its weights are in half "
            "precision, which loses small steps: load the base model in fp32."
        )


def _require_trainable_numbers(module: nn.Module) -> None:
    if torch.is_inference_mode_enabled() or any(map(Tensor.is_inference, module.parameters())):
        raise CldmError(
            "These weights were made under torch.inference_mode() and can't be trained with: load "
            "or clone them within `with torch.inference_mode(False):`."
        )


def _is_half(module: nn.Module) -> bool:
    return any(weight.dtype in HALF for weight in module.parameters())
