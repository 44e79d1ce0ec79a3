"""Changing weights as a whole: control added to a base model, moved to another one, mixed.

The functions on files and state dicts take any layout, leave what they are given as it is, and
return weights under the original's keys in memory of their own. They compute in fp32, tensor by
tensor, on the device of the first net, and store each in `dtype`: None takes the type that the
first net has it in, and fp16 for nets stored in 8 bits. Weights that are infinite or no numbers are
refused with DamagedCheckpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, sdpa
from .checkpoint.fit import conformed, shapes
from .checkpoint.guard import require_finite
from .checkpoint.read import Source
from .checkpoint.skeleton import shapes_of
from .checkpoint.write import HINT_KEY, config_metadata
from .config import ControlNetConfig, UNetConfig
from .control_lora import DIFFERENCE_MARKER, DIFFERENCE_PREFIX, OWN_PARTS, difference_net
from .controlnet import ControlNet
from .errors import CheckpointMismatch, CldmError, UnsupportedCheckpoint, listed
from .unet import ControlledUNet
from .union import UnionConfig
from .weights import ControlWeights, base_weights, control_weights, stored_copy, twins

UNCHANGED = 1e-6
"""A tensor whose every number changed by less than this is left out of a difference file."""


def add_control(
    unet: ControlledUNet, *, hint_channels: int = 3, ops: Any = nn, attention: Attention = sdpa
) -> ControlNet:
    """A new ControlNet for `unet`, after tool_add_control.py of the original.

    Its encoder is copied and its zero convolutions are zero, so it changes nothing until it is
    trained. The weights have the UNet's type and are on its device. Raises UnsupportedCheckpoint
    for a UNet that reads more than noisy latents, such as an inpainting model's.
    """
    if unet.config.in_channels != unet.config.out_channels:
        raise UnsupportedCheckpoint(
            f"The base model reads latents of {unet.config.in_channels} channels, and a ControlNet "
            f"gets the {unet.config.out_channels} of the noisy ones alone: make it from the plain "
            f"model of the same family, and it steers this one too."
        )
    parameter = next(unet.parameters())
    net = ControlNet(ControlNetConfig(unet.config, hint_channels), ops, attention=attention)
    net.to(parameter.device, parameter.dtype)
    state = net.state_dict()
    copied = {key: value for key, value in unet.state_dict().items() if key in state}
    net.load_state_dict({**state, **copied})
    return net


def transfer(
    control: Source, source: Source, target: Source, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """A ControlNet moved from the base model it was trained on to another one.

    What its encoder has beyond `source` is added to `target`'s; what no base has is kept (after
    tool_transfer_control.py of lllyasviel/ControlNet). For ControlNets and unions, on bases of the
    same shapes. Raises CheckpointMismatch where shapes differ, UnsupportedCheckpoint for other
    nets.
    """
    net = control_weights(control, title="the control net")
    if not any(key.startswith("zero_convs.") for key in net.state) or net.family.bound:
        advice = (
            "it builds upon whatever base it is given, so use it with the other one as it is"
            if net.family.bound
            else "nothing in it was copied from a base, so use it with the other one as it is"
        )
        raise UnsupportedCheckpoint(f"{net.name} holds a {net.kind.noun}: {advice}.")
    old = twins(net, base_weights(source), "the source")
    new = twins(net, base_weights(target), "the target")

    def moved(key: str, value: Tensor) -> Tensor:
        stored_type = dtype or net.output_type or value.dtype
        if key not in old:
            return stored_copy(value, stored_type, key)
        # In this order a base that is moved to itself changes nothing, not even by rounding.
        rebased = value.float() + (new[key].float() - old[key].float())
        return stored_copy(rebased, stored_type, key)

    return {key: moved(key, value) for key, value in net.state.items()}


def difference(
    control: Source, base: Source, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What a ControlNet has beyond its base model, in the format of difference files.

    That is extract_controlnet_diff.py's of Mikubill/sd-webui-controlnet, which ComfyUI and
    load_control read: a marker `difference`, keys behind `control_model.`, weights without a twin
    stored whole, and tensors left out that changed by less than 1e-6 everywhere. Such a change is
    lost; in fp16 most weights can't hold it anyway. With dtype fp32 a half-precision net is kept
    to the bit. Raises CheckpointMismatch where
    the base has other shapes, UnsupportedCheckpoint for other nets than ControlNets.
    """
    net = plain_weights(control)
    base_twins = twins(net, base_weights(base), "the base")
    result = {DIFFERENCE_MARKER: torch.tensor(1.0)}
    for key, value in net.state.items():
        stored = value
        if key in base_twins:
            stored = value.float() - base_twins[key].float()
            if stored.abs().max() < UNCHANGED:
                continue
        stored_type = dtype or net.output_type or value.dtype
        result[DIFFERENCE_PREFIX + key] = stored_copy(stored, stored_type, key)
    return result


def apply_difference(
    difference_file: Source, base: Source, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The plain ControlNet that a difference file makes of a base model.

    Raises CheckpointMismatch or FamilyMismatch where the two don't fit, UnsupportedCheckpoint where
    it is no difference file.
    """
    file = control_weights(difference_file, title="the difference")
    if file.kind.name != DIFFERENCE_MARKER:
        raise UnsupportedCheckpoint(
            f"{file.name} holds a {file.kind.noun}, expected a difference file: make one of a "
            f"ControlNet and its base first."
        )
    unet = base_weights(base)
    config = file.config(unet)
    # The net checks that file and base fit, in a sentence for each way they may not.
    difference_net(file.state, config).bind(unet)
    device = next(iter(file.state.values())).device
    result = {}
    for key, shape in shapes_of(partial(ControlNet, config)).items():
        value = file.state.get(key)
        if key.startswith(OWN_PARTS):
            value = total = file.state[key]
        else:
            twin = unet[key].reshape(shape).to(device)
            value, total = (twin, twin) if value is None else (value, value.float() + twin.float())
        result[key] = stored_copy(total, dtype or file.output_type or value.dtype, key)
    require_finite(result, f"{file.name} or its base", whole=True)
    return result


@dataclass(frozen=True)
class Merged:
    """A mixture of two nets: weights, metadata with its configuration, and what a user should know.

    The metadata has the pooling only where one of the nets tells it, and what is noted of the hint
    only where both don't say different things.
    """

    state: dict[str, Tensor]
    config: Any
    metadata: dict[str, str]
    note: str = ""


def merge_nets(
    first: Source,
    second: Source,
    ratio: float,
    *,
    global_average_pooling: bool | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Two nets of equal keys and shapes mixed: (1 - ratio) x first + ratio x second.

    ratio: from 0 (first) to 1 (second). For nets that are whole by themselves.
    global_average_pooling: decides where the nets' own configurations differ in it. Raises
    CldmError for another ratio, UnsupportedCheckpoint and CheckpointMismatch for nets that can't be
    mixed.
    """
    pooling = global_average_pooling
    return merged(first, second, ratio, global_average_pooling=pooling, dtype=dtype).state


def merged(
    first: Source,
    second: Source,
    ratio: float,
    *,
    global_average_pooling: bool | None = None,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Like merge_nets, with what the mixture's file should say."""
    if not 0 <= ratio <= 1 or math.isnan(ratio):
        raise CldmError(f"The ratio is {ratio}, expected a number from 0 (first) to 1 (second).")
    one = control_weights(first, title="the first net")
    other = control_weights(second, title="the second net")
    for net in (one, other):
        if net.family.bound:
            raise UnsupportedCheckpoint(
                f"{net.name} holds a {net.kind.noun}, which can't be merged by itself: merge the "
                f"whole nets, and extract or subtract afterwards."
            )
    other = replace(other, state=conformed(shapes(one.state), other.state))
    _require_alike(one, other)
    pooling, note = _merged_pooling(one, other, global_average_pooling)
    config = _merged_config(one, other)
    if isinstance(config, ControlNetConfig):
        config = replace(config, global_average_pooling=bool(pooling))
    state = {
        key: stored_copy(
            torch.lerp(value.float(), other.state[key].to(value.device).float(), ratio),
            dtype or one.output_type or value.dtype,
            key,
        )
        for key, value in one.state.items()
    }
    metadata = config_metadata(config, pooling_known=pooling is not None)
    hints = {net.hint for net in (one, other) if net.hint is not None}
    if len(hints) == 1:
        metadata[HINT_KEY] = hints.pop()
    return Merged(state, config, metadata, note)


def _merged_pooling(
    one: ControlWeights, other: ControlWeights, given: bool | None
) -> tuple[bool | None, str]:
    """Whether the mixture's residuals are averaged, None where nothing tells, and a remark."""
    if one.family.config is not ControlNetConfig:
        return False, ""
    if given is not None or one.pooling == other.pooling:
        return one.pooling if given is None else given, ""
    if one.pooling is not None and other.pooling is not None:
        pooled, plain = (one, other) if one.pooling else (other, one)
        raise CheckpointMismatch(
            f"The residuals of {pooled.name} are averaged over the picture and those of "
            f"{plain.name} are not: say with the pooling setting which the mixture shall be."
        )
    knows, silent = (other, one) if one.pooling is None else (one, other)
    return knows.pooling, (
        f"Pooling is {'yes' if knows.pooling else 'no'}, as {knows.name} says; {silent.name} "
        f"doesn't tell."
    )


def _merged_config(one: ControlWeights, other: ControlWeights) -> Any:
    """The configuration of both; raises CheckpointMismatch where what they carry differs."""
    config = one.config()
    if other.stored is None:
        return config
    if one.stored is None:
        # The form of the projections is the first net's, and its keys tell it.
        linear = _linear(config)
        return _over_unet(
            other.stored, lambda unet: replace(unet, use_linear_in_transformer=linear)
        )
    first, second = (dict(_flat(_comparable(net.stored).to_dict())) for net in (one, other))
    fields = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    if fields:
        raise CheckpointMismatch(
            f"{one.name} and {other.name} have equal shapes, but the configurations that they "
            f"carry differ in {', '.join(sorted(fields))}: only nets that compute alike can be "
            f"merged."
        )
    return config


def _comparable(config: Any) -> Any:
    """The configuration without what a control net doesn't compute with, or is decided apart."""
    if isinstance(config, ControlNetConfig):
        config = replace(config, global_average_pooling=False)
    return _over_unet(
        config,
        lambda unet: replace(
            unet,
            out_channels=4,
            transformer_depth_output=(0,) * len(unet.transformer_depth_output),
            use_linear_in_transformer=False,
            dropout=0.0,
        ),
    )


def _over_unet(config: Any, change: Callable[[UNetConfig], UNetConfig]) -> Any:
    """The configuration with another UNet's, where it has one."""
    match config:
        case ControlNetConfig():
            return replace(config, unet=change(config.unet))
        case UnionConfig():
            return replace(config, controlnet=_over_unet(config.controlnet, change))
    return config


def _linear(config: Any) -> bool:
    """Whether the projections of the net's transformers are linear layers."""
    match config:
        case ControlNetConfig():
            return config.unet.use_linear_in_transformer
        case UnionConfig():
            return config.controlnet.unet.use_linear_in_transformer
    return False


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names with plain values, out of nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def plain_weights(source: Source) -> ControlWeights:
    """The weights of a ControlNet of the plain kind; raises UnsupportedCheckpoint for others."""
    net = control_weights(source, title="the control net")
    if net.family.config is not ControlNetConfig or net.family.bound:
        raise UnsupportedCheckpoint(
            f"{net.name} holds a {net.kind.noun}, expected a ControlNet: only for those is there a "
            f"format of files that store what differs from a base."
        )
    return net


def _require_alike(one: ControlWeights, other: ControlWeights) -> None:
    if one.family.kind != other.family.kind:
        raise CheckpointMismatch(
            f"{one.name} holds a {one.kind.noun} and {other.name} a {other.kind.noun}: only nets "
            f"of one kind can be merged."
        )
    wrong = sorted(one.state.keys() ^ other.state.keys()) + [
        key
        for key in one.state.keys() & other.state.keys()
        if one.state[key].shape != other.state[key].shape
    ]
    if wrong:
        raise CheckpointMismatch(
            f"{one.name} and {other.name} differ in keys or shapes ({listed(wrong)}): only nets "
            f"for one family of base models, with equal hints, can be merged."
        )
