"""Checkpoints to nets: the right part of the file, the right configuration, no key left over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..attention import Attention, sdpa
from ..config import ControlNetConfig, UNetConfig
from ..controlnet import ControlNet
from ..errors import CheckpointMismatch, UnsupportedCheckpoint
from ..unet import ControlledUNet
from .detect import controlnet_config, unet_config
from .read import Checkpoint, Source, StateDict, metadata_record, read
from .write import CONFIG_KEY

UNET_PREFIXES = ("model.diffusion_model.", "")
CONTROL_PREFIXES = ("control_model.", "")
UNET_MARKER = "output_blocks.0.0.in_layers.0.weight"
CONTROL_MARKER = "zero_convs.0.0.weight"
DIFFUSERS_MARKERS = (
    "controlnet_cond_embedding.conv_in.weight",
    "down_blocks.0.resnets.0.conv1.weight",
)
LOADER = "use ComfyUI's own Load ControlNet Model"
DIFF_LOADER = "use ComfyUI's own Load ControlNet Model (diff)"
LLLITE_PACK = "use the node pack ControlNet-LLLite-ComfyUI"

C = TypeVar("C", UNetConfig, ControlNetConfig)
N = TypeVar("N", bound=nn.Module)


def load_controlnet(
    path_or_state_dict: Source,
    *,
    config: ControlNetConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlNet:
    """The ControlNet of a file or state dict in the original's key layout, in eval mode.

    With or without the `control_model.` prefix, alone or inside a whole checkpoint. The
    configuration comes from `config`, else from the file's metadata, else from keys and shapes.
    dtype None keeps the stored one, the most common where there are several. Raises
    UnsupportedCheckpoint, DamagedCheckpoint or CheckpointMismatch, each with a sentence.
    """
    checkpoint = read(path_or_state_dict)
    state = part(checkpoint, CONTROL_PREFIXES, CONTROL_MARKER, "ControlNet")
    config = (
        config or _stored(checkpoint, ControlNetConfig, "controlnet") or controlnet_config(state)
    )
    state = _unified(state, dtype, checkpoint.name)
    net = _filled(partial(ControlNet, config, attention=attention), ops, state, checkpoint.name)
    return net.to(device).eval()


def load_unet(
    path_or_state_dict: Source,
    *,
    config: UNetConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ops: Any = nn,
    attention: Attention = sdpa,
) -> ControlledUNet:
    """The UNet of a file or state dict in the original's key layout, in eval mode and frozen.

    With or without the `model.diffusion_model.` prefix. See load_controlnet for the rest.
    """
    checkpoint = read(path_or_state_dict)
    state = part(checkpoint, UNET_PREFIXES, UNET_MARKER, "UNet")
    config = config or _stored(checkpoint, UNetConfig, "unet") or unet_config(state)
    state = _unified(state, dtype, checkpoint.name)
    build = partial(ControlledUNet, config, attention=attention)
    unet = _filled(build, ops, state, checkpoint.name)
    return unet.to(device).eval().requires_grad_(False)


def part(checkpoint: Checkpoint, prefixes: tuple[str, ...], marker: str, what: str) -> StateDict:
    """The tensors behind the first prefix under which `marker` stands, without the prefix."""
    tensors = checkpoint.tensors
    if other := _other_kind(tensors):
        raise UnsupportedCheckpoint(f"{checkpoint.name} can't be loaded as a {what}. {other}")
    for prefix in prefixes:
        if prefix + marker in tensors:
            return {
                key[len(prefix) :]: value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
    raise UnsupportedCheckpoint(
        f"{checkpoint.name} holds no {what} in the original's key layout: the key {marker} is "
        f"missing. {_hint(tensors)}"
    )


def common_type(state: StateDict) -> torch.dtype:
    """The type that most numbers of the tensors are stored in."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def _unified(state: StateDict, dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    """The tensors in one floating type: `dtype`, or the most common one where it is None."""
    for key, value in state.items():
        if not value.is_floating_point():
            raise UnsupportedCheckpoint(
                f"{name} stores {key} as {_type_name(value)}, expected floating-point weights: "
                f"take an fp16, bf16 or fp32 version of the file."
            )
        if dtype is None and value.dtype.itemsize == 1:
            raise UnsupportedCheckpoint(
                f"{name} stores {key} as {_type_name(value)}, which no layer computes in: say "
                f"the type to convert to, such as dtype=torch.float16."
            )
    chosen = dtype or common_type(state)
    return {key: value.to(chosen) for key, value in state.items()}


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _other_kind(tensors: StateDict) -> str | None:
    """What other way of control the file holds, told from its keys, and what to do with it."""
    kinds = (
        ("Control-LoRA", "lora_controlnet" in tensors, LOADER),
        (
            "union ControlNet",
            "task_embedding" in tensors or "control_add_embedding.linear_1.bias" in tensors,
            LOADER,
        ),
        ("T2I-Adapter", _is_adapter(tensors), LOADER),
        ("ControlNet-LLLite", any("lllite" in key for key in tensors), LLLITE_PACK),
        ("difference to a ControlNet", "difference" in tensors, DIFF_LOADER),
    )
    for kind, found, advice in kinds:
        if found:
            return f"It holds a {kind}, which this version doesn't load: {advice}."
    return None


def _is_adapter(tensors: StateDict) -> bool:
    return (
        "body.0.in_conv.weight" in tensors
        or {"conv_in.weight", "body.0.block2.weight"} <= set(tensors)
        or any(key.startswith("adapter.body.0.") for key in tensors)
    )


def _hint(tensors: StateDict) -> str:
    """What the file seems to be instead."""
    if any(key in tensors for key in DIFFUSERS_MARKERS):
        return "It looks like a diffusers file: convert it to the original's layout first."
    if any(key.endswith(CONTROL_MARKER) for key in tensors):
        return "It holds a ControlNet: load it as one."
    if any(key.endswith(UNET_MARKER) for key in tensors):
        return "It holds a base model: load it as a UNet or checkpoint."
    return f"It starts with the keys {', '.join(sorted(tensors)[:3])}."


def _stored(checkpoint: Checkpoint, kind: type[C], name: str) -> C | None:
    record = metadata_record(checkpoint, CONFIG_KEY)
    if record is None or record.pop("kind", None) != name:
        return None
    return kind.from_dict(record)


def _filled(build: Callable[..., N], ops: Any, state: StateDict, name: str) -> N:
    """The net built without memory and then given the tensors themselves."""
    with torch.device("meta"):
        plain = build(nn)
        # Layers of a host may have no parameters yet, so the plain ones tell what is expected.
        net = plain if ops is nn else build(ops)
    require_fit(plain.state_dict(), state, name)
    net.load_state_dict(state, assign=True)
    return net


def require_fit(own: StateDict, state: StateDict, name: str) -> None:
    """Raises CheckpointMismatch unless the tensors have just the keys and shapes of `own`."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointMismatch(
            f"{name} doesn't fit the net that its configuration describes: "
            + "; ".join(
                filter(
                    None,
                    (
                        _some("missing", missing),
                        _some("unexpected", unexpected),
                        _some("", misshapen),
                    ),
                )
            )
            + "."
        )


def _some(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{title} {', '.join(items[:3])}{more}".strip()
