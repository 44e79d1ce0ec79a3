"""Files that lie: small nets of every family, and what damage or malice may make of their files."""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from controlnet_pack.cldm_core import (
    TINY,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    UNetConfig,
)
from controlnet_pack.cldm_core.checkpoint import config_metadata
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

from .samples import adapter, filled, lllite, prefixed

State = dict[str, Tensor]

# Texts 768 wide have 8 heads, so that a net of 32 channels keeps the family's rule.
UNET = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    transformer_depth=(1, 1),
    transformer_depth_middle=1,
    transformer_depth_output=(1, 1, 1, 1),
    context_dim=768,
    num_heads=8,
)
CONFIG = ControlNetConfig(UNET)


def _lora() -> State:
    state: State = {"lora_controlnet": torch.zeros(0)}
    for key, value in filled(ControlNet(CONFIG)).items():
        own = key.startswith(("input_hint_block", "zero_convs", "middle_block_out"))
        if value.ndim < 2 or own:
            state[key] = value
        else:
            path = key.removesuffix(".weight")
            state[f"{path}.up"] = torch.ones(value.shape[0], 2)
            state[f"{path}.down"] = torch.ones(2, *value.shape[1:])
    return state


def _controlnet() -> State:
    return filled(ControlNet(CONFIG))


NETS: dict[str, Callable[[], State]] = {
    "cldm": _controlnet,
    "prefix": lambda: prefixed("control_model.", _controlnet()),
    "diffusers": lambda: to_diffusers(_controlnet()),
    "no text": lambda: filled(
        ControlNet(
            ControlNetConfig(
                replace(
                    TINY,
                    model_channels=32,
                    num_head_channels=32,
                    adm_in_channels=8,
                    transformer_depth=(0, 0, 0),
                    transformer_depth_middle=-1,
                    transformer_depth_output=(0,) * 6,
                    context_dim=None,
                )
            )
        )
    ),
    "union": lambda: filled(UnionControlNet(UnionConfig(CONFIG, 6))),
    "t2i": lambda: adapter(),
    "t2i light": lambda: adapter(kind="light", num_res_blocks=4),
    "lllite": lambda: lllite("input_blocks.1", "middle_block"),
    "control_lora": _lora,
    "difference": lambda: {
        "difference": torch.ones(()),
        **prefixed("control_model.", _controlnet()),
    },
    "unet": lambda: filled(ControlledUNet(UNET)),
    "unet prefix": lambda: prefixed("model.diffusion_model.", filled(ControlledUNet(UNET))),
    "unet diffusers": lambda: to_diffusers(filled(ControlledUNet(UNET))),
}

SHAPES = (
    (),
    (0,),
    (1,),
    (7,),
    (0, 0),
    (0, 3, 3, 3),
    (64, 3),
    (1, 1, 1, 1),
    (32, 4, 3, 3),
    (2,) * 9,
)
TYPES = (
    torch.int8,
    torch.bool,
    torch.int64,
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
DTYPES = ("F4", "U16", "C64", "F8_E8M0", "F32", "I8", "BOOL", "", "F16 ", 3, None, ["F16"])
KEYS = (
    "input_blocks.99.0.out_layers.3.weight",
    "input_blocks.98.1.transformer_blocks.99.attn1.to_q.weight",
    "input_blocks.1.1.transformer_blocks.99.norm1.weight",
    "middle_block.1.transformer_blocks.98.attn2.to_k.weight",
    "down_blocks.999.resnets.999.conv1.weight",
    "up_blocks.999.attentions.0.norm.weight",
    "output_blocks.0.0.out_layers.3.weight",
    "label_emb.0.0.weight",
    "zero_convs.0.0.weight",
    "lora_controlnet",
    "difference",
    "scaled_fp8",
    "time_embed.0.scale_weight",
    "middle_block.1.proj_in.weight",
    "task_embedding",
    "control_add_embedding.linear_1.weight",
    "controlnet_cond_embedding.conv_in.weight",
    "body.0.in_conv.weight",
    "body.0.resnets.0.block1.weight",
    "body.99.block1.weight",
    "lllite_unet_input_blocks_99_1_transformer_blocks_9_attn1_to_q.down.0.weight",
    "lllite_unet_evil.down.0.weight",
    "__metadata__",
    "control_model.",
    "module.",
    "module.control_model.zero_convs.0.0.weight",
    "module.difference",
    "brushnet_down_blocks.0.weight",
    "encoder_hid_proj.weight",
    "model.diffusion_model.output_blocks.0.0.in_layers.0.weight",
    "",
    ".",
    "\n",
    "\N{SNOWMAN}.weight",
    "a." * 500,
)
CONFIGS: tuple[Any, ...] = (
    "{",
    "[]",
    "[" * 5000,
    "1" * 5000,
    '{"kind": "controlnet"}',
    {"kind": "controlnet", "unet": {}},
    {"transformer_depth": [10**9, 1]},
    {"transformer_depth_middle": 10**9},
    {"transformer_depth": [99, 99]},
    {"num_res_blocks": [10**7, 1]},
    {"model_channels": 32 * 10**30},
    {"model_channels": 2**40},
    {"context_dim": 2**62},
    {"num_heads": 10**9},
    {"dropout": "NaN"},
    {"channel_mult": []},
    {"model_channels": None},
)


@cache
def base(name: str) -> State:
    """The family's net in half precision; the tensors must not be written to."""
    torch.manual_seed(1)
    return {key: value.half() for key, value in NETS[name]().items()}


@dataclass(frozen=True)
class Hostile:
    """A file's content, and by what steps it was made."""

    content: bytes
    ending: str
    steps: tuple[Any, ...]

    def write(self, folder: Path) -> Path:
        path = folder / f"net{self.ending}"
        path.write_bytes(self.content)
        return path

    def __repr__(self) -> str:
        return f"Hostile({self.ending}, {len(self.content)} bytes, {self.steps})"


@st.composite
def changed_states(draw: Any, steps: list[Any]) -> State:
    """A net's tensors after up to three changes to keys, shapes, types and numbers."""
    name = draw(st.sampled_from(sorted(NETS)))
    state = dict(base(name))
    steps.append(name)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(sorted(STATE_CHANGES)))
        key = draw(st.sampled_from(sorted(state) or [""]))
        steps.append((kind, key, STATE_CHANGES[kind](draw, state, key)))
    return state


def _numbers(draw: Any, state: State, key: str) -> Any:
    number = draw(st.sampled_from((float("nan"), float("inf"), float("-inf"))))
    state[key] = torch.full(state[key].shape, number, dtype=torch.float16)
    return number


def _shape(draw: Any, state: State, key: str) -> Any:
    shape = draw(st.sampled_from(SHAPES))
    state[key] = torch.zeros(shape, dtype=torch.float16)
    return shape


def _type(draw: Any, state: State, key: str) -> Any:
    dtype = draw(st.sampled_from(TYPES))
    everything = draw(st.booleans())
    for each in list(state) if everything else [key]:
        state[each] = state[each].to(dtype)
    return dtype, everything


def _drop(_: Any, state: State, key: str) -> None:
    state.pop(key, None)


def _drop_all(_: Any, state: State, key: str) -> str:
    """All keys of one layer or block are gone."""
    start = key.rpartition(".")[0].rpartition(".")[0]
    for each in [k for k in state if k.startswith(start)]:
        del state[each]
    return start


def _rename(draw: Any, state: State, key: str) -> Any:
    new = draw(st.sampled_from(KEYS) | st.text(max_size=12))
    state[new] = state.pop(key, torch.zeros(1))
    return new


def _double(draw: Any, state: State, key: str) -> Any:
    new = draw(st.sampled_from(KEYS))
    state[new] = state.get(key, torch.zeros(1)).clone()
    return new


STATE_CHANGES: dict[str, Callable[[Any, State, str], Any]] = {
    "double": _double,
    "drop": _drop,
    "drop all": _drop_all,
    "numbers": _numbers,
    "rename": _rename,
    "shape": _shape,
    "type": _type,
}


@st.composite
def safetensors_files(draw: Any) -> Hostile:
    """A .safetensors file whose tensors, header or bytes were tampered with."""
    steps: list[Any] = []
    state = draw(changed_states(steps))
    metadata = draw(st.none() | st.sampled_from(CONFIGS))
    steps.append(metadata)
    content = save(state, None if metadata is None else _metadata(metadata))
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from(sorted(HEADER_CHANGES)))
        length = struct.unpack("<Q", content[:8])[0]
        try:
            header = json.loads(content[8 : 8 + length])
        except (ValueError, RecursionError):
            break
        if not isinstance(header, dict) or not header:
            break
        text = HEADER_CHANGES[kind](draw, header, steps)
        content = struct.pack("<Q", len(text)) + text + content[8 + length :]
    content = draw(damaged(content, steps))
    return Hostile(content, draw(st.sampled_from((".safetensors", ".pth"))), tuple(steps))


def _metadata(values: Any) -> dict[str, str]:
    if isinstance(values, str):
        return {"cldm_core.config": values}
    texts = config_metadata(CONFIG)
    record = json.loads(texts["cldm_core.config"])
    record["unet"] |= values
    return {"cldm_core.config": json.dumps({**record, **values} if "kind" in values else record)}


def _entry(draw: Any, header: dict[str, Any]) -> str:
    return draw(st.sampled_from(sorted(header)))


def _offsets(draw: Any, header: dict[str, Any], steps: list[Any]) -> bytes:
    key = _entry(draw, header)
    number = st.integers(-2, 300) | st.sampled_from((2**31, 2**63, 2**64, 10**30, 1.5, None))
    pair = draw(st.lists(number, max_size=3))
    steps.append(("offsets", key, pair))
    header[key] = {**header[key], "data_offsets": pair}
    return json.dumps(header).encode()


def _header_shape(draw: Any, header: dict[str, Any], steps: list[Any]) -> bytes:
    key = _entry(draw, header)
    size = st.integers(-1, 70) | st.sampled_from((0, 2**31, 2**32, 2**62, 2**63, 10**30))
    shape = draw(st.lists(size, max_size=4))
    steps.append(("header shape", key, shape))
    header[key] = {**header[key], "shape": shape}
    if 0 in shape:
        header[key]["data_offsets"] = [0, 0]
    return json.dumps(header).encode()


def _header_type(draw: Any, header: dict[str, Any], steps: list[Any]) -> bytes:
    key, name = _entry(draw, header), draw(st.sampled_from(DTYPES))
    steps.append(("header type", key, name))
    header[key] = {**header[key], "dtype": name}
    return json.dumps(header).encode()


def _header_double(draw: Any, header: dict[str, Any], steps: list[Any]) -> bytes:
    """The same key twice, or under a second name: bytes that belong to two tensors."""
    key, new = _entry(draw, header), draw(st.sampled_from(KEYS) | st.none())
    steps.append(("header double", key, new))
    again = json.dumps({key if new is None else new: header[key]})
    return (json.dumps(header)[:-1] + "," + again[1:]).encode()


def _header_garbage(draw: Any, _: dict[str, Any], steps: list[Any]) -> bytes:
    text = draw(st.sampled_from((b"", b"{", b"[]", b"null", b"{}", b"[" * 3000, b"\xff" * 9)))
    steps.append(("header garbage", text[:9]))
    return text


HEADER_CHANGES: dict[str, Callable[[Any, dict[str, Any], list[Any]], bytes]] = {
    "double": _header_double,
    "garbage": _header_garbage,
    "offsets": _offsets,
    "shape": _header_shape,
    "type": _header_type,
}


@st.composite
def torch_files(draw: Any) -> Hostile:
    """A PyTorch file, of the new kind or the old, whose tensors or bytes were tampered with."""
    steps: list[Any] = []
    content: Any = draw(changed_states(steps))
    wrapper = draw(
        st.sampled_from((None, "state_dict", "model", "adapter", "other", "list", "tensor"))
    )
    if wrapper == "list":
        content = list(content.values())
    elif wrapper == "tensor":
        content = torch.zeros(2)
    elif wrapper:
        content = {wrapper: content, "epoch": 3}
    zipped = draw(st.booleans())
    steps += [wrapper, "zip" if zipped else "legacy"]
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return Hostile(draw(damaged(buffer.getvalue(), steps)), ".pth", tuple(steps))


@st.composite
def damaged(draw: Any, content: bytes, steps: list[Any]) -> bytes:
    """The bytes as they are, cut short, or with some exchanged where files describe themselves."""
    kind = draw(st.sampled_from(("whole", "whole", "cut", "bytes", "length", "more")))
    if kind == "whole" or not content:
        return content
    at = draw(st.integers(0, 1100) | st.integers(-1100, -1) | st.integers(0, len(content)))
    at = max(0, min(len(content) - 1, at % len(content)))
    steps.append((kind, at))
    if kind == "cut":
        return content[:at]
    if kind == "length":
        length = draw(st.integers(0, 2000) | st.sampled_from((2**24, 2**31, 2**63, 2**64 - 1)))
        steps.append(length)
        return struct.pack("<Q", length) + content[8:]
    if kind == "more":
        return content + b"\0" * at
    new = draw(st.binary(min_size=1, max_size=4))
    steps.append(new)
    return content[:at] + new + content[at + len(new) :]
