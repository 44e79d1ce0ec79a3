"""What is computed once and kept on disk: latents, embeddings, hints, sizes, indices.

An entry is a file named by the digest of everything that it depends on. It is written under a
temporary name and then renamed: it is whole or not there. What can't be read is computed anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import CldmError
from ..whole_files import whole_file

log = logging.getLogger("cldm_core")

Arrays = dict[str, np.ndarray]
Tensors = dict[str, Tensor]


class Cache:
    """A folder of entries; None keeps nothing. Raises CldmError where it can't be written.

    without: kinds that are computed each time: `latents` (of Stable Diffusion 1 at 512x512, 66 kB a
    picture), `texts` (240 kB a prompt; of SDXL 640 kB) or `hints`.
    """

    def __init__(self, folder: str | Path | None, without: Collection[str] = ()) -> None:
        self.folder = None if folder is None else Path(folder)
        self.without = frozenset(without)

    def tensors(self, kind: str, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors kept as `key`, or made now; on the CPU."""
        path = self._entry(kind, key, ".safetensors")
        if path is None:
            return make()
        stored = read_entry(path)
        if stored is not None:
            try:
                return load(stored)
            except (SafetensorError, ValueError):
                _say_damaged(path)
        made = make()
        write_entry(path, save({name: value.contiguous() for name, value in made.items()}))
        return made

    def data(self, kind: str, key: str, make: Callable[[], bytes], ending: str) -> bytes:
        """The bytes kept as `key`, or made now."""
        path = self._entry(kind, key, ending)
        stored = None if path is None else read_entry(path)
        if stored is not None:
            return stored
        made = make()
        if path is not None:
            write_entry(path, made)
        return made

    def forget(self, kind: str, key: str, ending: str) -> None:
        """Removes an entry that proved to be damaged."""
        path = self._entry(kind, key, ending)
        if path is not None:
            _say_damaged(path)
            path.unlink(missing_ok=True)

    def _entry(self, kind: str, key: str, ending: str) -> Path | None:
        return None if kind in self.without else entry(self.folder, kind, key, ending)


def stored_arrays(folder: Path | None, kind: str, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays kept as `key`, or made now."""
    path = entry(folder, kind, key, ".npz")
    stored = None if path is None else read_entry(path)
    if stored is not None and path is not None:
        try:
            with np.load(BytesIO(stored), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, EOFError, OSError, KeyError, BadZipFile):
            _say_damaged(path)
    made = make()
    if path is not None:
        buffer = BytesIO()
        np.savez(buffer, allow_pickle=False, **made)
        write_entry(path, buffer.getvalue())
    return made


def entry(folder: Path | None, kind: str, key: str, ending: str) -> Path | None:
    """The file of an entry, None where nothing is kept."""
    if folder is None:
        return None
    digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
    # No folder gets more than a few thousand files of a million.
    return folder / kind / digest[:3] / f"{digest[3:]}{ending}"


def read_entry(path: Path) -> bytes | None:
    """What is in the file; None where there is none, or it can't be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        _say_damaged(path)
        return None


def write_entry(path: Path, data: bytes) -> None:
    """Writes a file that is whole or not there; raises CldmError where it can't be written."""
    try:
        with whole_file(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise CldmError(
            f"The cache {path.parent.parent} can't be written ({error.strerror or error}): make "
            "room, choose another folder, or train without a cache (cache: none)."
        ) from error


def _say_damaged(path: Path) -> None:
    log.warning("%s can't be read: it is made anew.", path)
