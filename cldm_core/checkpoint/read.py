"""Files to state dicts: tensors only, memory-mapped, and every way to fail is a sentence."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CldmError, DamagedCheckpoint, UnsupportedCheckpoint
from .bookkeeping import only_bookkeeping
from .firstbytes import ENDINGS, kind_of, require_weights
from .guard import (
    require_dense,
    require_own_numbers,
    require_small_header,
    require_stored,
)

StateDict = Mapping[str, Tensor]

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "C64": torch.complex64,
    "BOOL": torch.bool,
}
"""Types by their names in a header of safetensors."""

_PART = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.")
"""In the names of divided models, as Hugging Face's libraries write them."""
WRAPPERS = ("state_dict", "model", "module", "params", "net", "adapter")
"""Under what name files of PyTorch hold the tensors; T2I-Adapters come as `adapter`."""
MOST_NESTED = 3
"""How deep wrappers and named groups of tensors are looked into."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by key, the file's metadata (safetensors only), and what to call it in a message."""

    tensors: StateDict
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = "the state dict"


Source = str | Path | StateDict | Checkpoint


def read(source: Source) -> Checkpoint:
    """Reads a .safetensors file or a PyTorch file of tensors; what is read already stays as it is.

    The kind is told from the content, not from the name. PyTorch files are read with
    weights_only=True: one that holds code is refused and its code does not run. Raises
    DamagedCheckpoint or UnsupportedCheckpoint.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return Checkpoint(_unwrapped(source, "the state dict"))
    path = _existing(source)
    if _is_torch_file(path):
        tensors = _unwrapped(_read_torch(path), path.name)
        require_own_numbers(tensors, path)
        return Checkpoint(tensors, {}, path.name)
    tensors, metadata = _read_safetensors(path, lambda file, key: file.get_tensor(key))
    return Checkpoint(tensors, metadata, path.name)


def read_header(source: Source) -> Checkpoint:
    """Like `read`, but tensors of a .safetensors file come without their numbers (on "meta").

    Only the file's header is read, so that a file of any size takes milliseconds.
    """
    if isinstance(source, (Checkpoint, Mapping)):
        return read(source)
    path = _existing(source)
    if _is_torch_file(path):
        return read(path)
    tensors, metadata = _read_safetensors(path, _outline)
    return Checkpoint(tensors, metadata, path.name)


def metadata_record(checkpoint: Checkpoint, key: str) -> dict[str, Any] | None:
    """The JSON object under `key` of the file's metadata, None where there is none."""
    text = checkpoint.metadata.get(key)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{checkpoint.name} has unreadable metadata under {key!r}: {error}."
        ) from error
    if not isinstance(record, dict):
        raise DamagedCheckpoint(
            f"{checkpoint.name} has metadata under {key!r} that is no JSON object."
        )
    return record


def is_legacy(path: Path) -> bool:
    """Whether it is a PyTorch file of before 1.6, which can't be mapped but must be read whole."""
    return _is_torch_file(path) and not zipfile.is_zipfile(path)


def _existing(source: str | Path) -> Path:
    path = Path(source)
    try:
        if path.is_dir():
            raise UnsupportedCheckpoint(
                f"{path} is a folder: name the file in it ({_weights_in(path)})."
            )
        if not path.is_file():
            raise UnsupportedCheckpoint(f"There is no file {path}: check the name and the folder.")
        require_weights(path)
    except OSError as error:
        raise UnsupportedCheckpoint(
            f"{path} can't be read ({error.strerror}): check the name, and whether you may read it."
        ) from error
    _require_readable_name(path)
    return path


def _require_readable_name(path: Path) -> None:
    """Raises UnsupportedCheckpoint for a part of a model, and for names that no library opens."""
    if (part := _PART.search(path.name)) and int(part[1]) > 1:
        raise UnsupportedCheckpoint(
            f"{path.name} is one of {int(part[1])} files that a model was divided into: save the "
            f"model as one file (in diffusers with a larger max_shard_size), and take that."
        )
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedCheckpoint(
            f"{path} has a name that isn't UTF-8, which can't be opened: rename the file or folder."
        ) from error


def _weights_in(folder: Path) -> str:
    """What a folder's files of weights are called, or what they use to be called."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in ENDINGS)
    return ", ".join([*names[:3], "..."] if names else ["diffusion_pytorch_model.safetensors, ..."])


def _is_torch_file(path: Path) -> bool:
    with open(path, "rb") as handle:
        start = handle.read(9)
    # A zip archive, or a pickle of protocol 2 and above. A safetensors file starts with its
    # header's length, which may be any bytes, and has the header's "{" at byte 8.
    return start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{"


def _read_safetensors(
    path: Path, tensor_of: Callable[[Any, str], Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    require_small_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: tensor_of(file, key) for key in file.keys()}  # noqa: SIM118
            return _some(tensors, path.name), file.metadata() or {}
    except CldmError:
        raise
    # A damaged file may fail in any way, and each is the file's fault.
    except Exception as error:
        raise DamagedCheckpoint(
            f"{path.name} can't be read as {kind_of(path)} ({_first_line(error)}): it is "
            f"truncated, damaged or something else. Download or export it again."
        ) from error


def _outline(file: Any, key: str) -> Tensor:
    """A tensor's shape and type, without its numbers."""
    outline = file.get_slice(key)
    name = outline.get_dtype()
    if name not in TYPES:
        raise UnsupportedCheckpoint(
            f"The file stores {key!a} as {name}, which no layer computes in: take an fp16, bf16 or "
            f"fp32 version of it."
        )
    return torch.empty(outline.get_shape(), dtype=TYPES[name], device="meta")


def _read_torch(path: Path) -> Any:
    # Files of PyTorch before 1.6 are no zip archives and can't be mapped; and torch goes by the
    # ending .safetensors, so that a misnamed file must come as a stream.
    mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
    if _is_torch_script(path):
        raise UnsupportedCheckpoint(
            f"{path.name} is a TorchScript program, not a file of weights: get the weights as a "
            f".safetensors file."
        )
    require_stored(path)
    try:
        with open(path, "rb") as handle, only_bookkeeping():
            source = path if mapped else handle
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise DamagedCheckpoint(
            f"{path.name} is damaged, or holds more than tensors and could run code when read, so "
            f"it was refused: get a .safetensors version of it."
        ) from error
    # A damaged file may fail in any way, and each is the file's fault.
    except Exception as error:
        raise DamagedCheckpoint(
            f"{path.name} can't be read as a PyTorch file ({_first_line(error)}): it is truncated "
            f"or damaged. Download it again."
        ) from error


def _is_torch_script(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # No archive, or a damaged one: torch says what is wrong with it.
        return False


def _first_line(error: Exception) -> str:
    """The first line of a message; torch appends pages of advice for its own users."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unwrapped(content: Any, name: str) -> StateDict:
    """The tensors of a file by name, out of what training wraps them in.

    Groups of tensors that no wrapper's name is known of, as IP-Adapters come in, get dotted keys.
    """
    for _ in range(MOST_NESTED):
        parts = [content.get(w) for w in WRAPPERS] if isinstance(content, Mapping) else []
        content = next((part for part in parts if any(_named(part, set()))), content)
    tensors = _some(dict(_named(content, set())), name)
    require_dense(tensors, name)
    return tensors


def _some(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors; raises UnsupportedCheckpoint where there are none."""
    if not tensors:
        raise UnsupportedCheckpoint(
            f"{name} holds no tensors by name: it is no checkpoint of a network."
        )
    return tensors


def _named(
    content: Any, seen: set[int], prefix: str = "", depth: int = MOST_NESTED
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings under dotted keys; anything else is left out.

    seen: the mappings that were looked into. Each is taken once: a pickle of a few bytes may name
    the same one so often that its tensors fill the memory.
    """
    if not isinstance(content, Mapping) or not depth or id(content) in seen:
        return
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(key, str):
            yield from _named(value, seen, f"{prefix}{key}.", depth - 1)
