"""What a file may claim and hold: nothing is built or unpacked on the word of a hostile file."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..eight_bits import is_8_bit
from ..errors import CheckpointMismatch, DamagedCheckpoint, listed
from .firstbytes import kind_of

MOST_HEADER = 32 << 20
"""Bytes of a header of safetensors; those of whole SDXL checkpoints have less than one million."""
MOST_RECORDS = 64 << 20
"""Bytes of what describes the tensors in a PyTorch file."""
MOST_SHARED = 4
"""How often a file's bytes may be used by its tensors, which may share them."""
FEW = 128
"""Blocks that a net may have whatever its file's number of keys; SDXL's UNet counts 76."""
KEYS_PER_BLOCK = 4
"""Of whole nets each block has more; files of differences may leave out blocks."""
PROBED = 4096
"""Numbers of each tensor that are looked at when a net is loaded."""

_COUNTS = ("num_res_blocks", "transformer_depth", "transformer_depth_middle")


def require_small_header(path: Path) -> None:
    """Raises DamagedCheckpoint where a safetensors file has a header beyond any sense.

    The header is read and taken apart whole, so that this bounds memory and time.
    """
    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if length > MOST_HEADER:
        raise DamagedCheckpoint(
            f"{path.name} can't be read as {kind_of(path)}: its header claims {length:,} bytes, "
            f"expected at most {MOST_HEADER:,}. It is damaged or something else."
        )


def require_stored(path: Path) -> None:
    """Raises DamagedCheckpoint where a PyTorch archive is packed, or its records are too large.

    PyTorch stores without packing; what is packed can't be mapped, and may unpack to any size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # A damaged archive: torch says what is wrong with it.
        return
    for file in files:
        large = file.filename.endswith(".pkl") and file.file_size > MOST_RECORDS
        if file.compress_type != zipfile.ZIP_STORED or large:
            raise DamagedCheckpoint(
                f"{path.name} is packed in a way that PyTorch doesn't write ({file.filename!a} "
                f"unpacks to {file.file_size:,} bytes), so it was not unpacked: get a .safetensors "
                f"version of it."
            )


def require_own_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises DamagedCheckpoint where the tensors of a PyTorch file claim more than the file holds.

    A view may repeat a few bytes without end, and fills the memory once it is computed with.
    """
    for key, value in tensors.items():
        if value.is_meta:
            raise DamagedCheckpoint(
                f"{path.name} holds the shape of {key!a} without its numbers: it was saved before "
                f"its weights were loaded, so get another version of it."
            )
    claimed = sum(value.numel() * value.itemsize for value in tensors.values())
    size = path.stat().st_size
    if claimed > MOST_SHARED * size:
        raise DamagedCheckpoint(
            f"{path.name} is {size:,} bytes long and its tensors claim {claimed:,}: it is damaged. "
            f"Get a .safetensors version of it."
        )


def require_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises DamagedCheckpoint unless all tensors hold plain numbers."""
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise DamagedCheckpoint(
                f"{name} stores {key!a} in a packed form (sparse, nested or quantised), which no "
                f"ControlNet is published in: get a plain fp16 or fp32 version of it."
            )


def require_plausible(config: Mapping[str, Any], keys: int, name: str) -> None:
    """Raises CheckpointMismatch where a configuration names far more blocks than a file has keys.

    config: its plain values (`to_dict`). Before anything is built: each block is objects in memory,
    and a file of a few bytes may ask for any number of them.
    """
    counts = list(_counts(config))
    levels = config.get("channels")
    blocks = sum(counts) * (len(levels) if isinstance(levels, Collection) else 1)
    most = max(FEW, keys // KEYS_PER_BLOCK)
    if blocks > most or any(size >= 2**31 for size in _numbers(config)):
        raise CheckpointMismatch(
            f"{name} has {keys} keys, and its configuration is that of a net with {blocks:,} "
            f"blocks: it is damaged or was put together wrongly."
        )


def require_finite(tensors: Mapping[str, Tensor], name: str, *, whole: bool = False) -> None:
    """Raises DamagedCheckpoint where weights are infinite or not numbers.

    Training that diverged spoils every tensor. So it is enough to look at the first PROBED numbers
    of each, which reads a page of memory each where a file is mapped; `whole` looks at all.
    Tensors without numbers (on "meta") are passed.
    """
    probes = {
        key: value.detach() if whole else _start(value.detach())
        for key, value in tensors.items()
        if value.is_floating_point() and not value.is_meta and value.numel()
    }
    if not whole and _are_finite(list(probes.values())):
        return
    wrong = [key for key, value in probes.items() if not _are_finite([value])]
    if wrong:
        raise DamagedCheckpoint(
            f"{name} holds numbers that are infinite or no numbers (NaN) in "
            f"{listed(map(ascii, wrong))}: its training failed or it is "
            f"damaged, so get another version of it."
        )


def _are_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; tensors of one type and device at a time."""
    groups: dict[Any, list[Tensor]] = {}
    for value in tensors:
        wide = value.float() if is_8_bit(value.dtype) else value
        groups.setdefault((wide.dtype, wide.device), []).append(wide)
    for group in groups.values():
        flat = group[0] if len(group) == 1 else torch.cat([value.flatten() for value in group])
        if not bool(torch.isfinite(flat).all()):
            return False
    return True


def _start(value: Tensor) -> Tensor:
    """The first numbers of a tensor, as a view."""
    while value.ndim > 1 and value.numel() > PROBED:
        value = value[0]
    return value if value.numel() <= PROBED else value[:PROBED]


def _counts(values: Mapping[str, Any]) -> Iterator[int]:
    """How many blocks a configuration names, place by place."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif name in _COUNTS:
            yield from value if isinstance(value, (tuple, list)) else (value,)


def _numbers(value: Any) -> Iterator[int]:
    """All whole numbers in plain values."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _numbers(inner)
