"""What the command line checks before it works on files: roles of the given, room for the new."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from .checkpoint.formats import control_part, recognise
from .checkpoint.read import read_header
from .errors import CldmError, UnsupportedCheckpoint
from .weights import base_weights

BASES = ("base", "source", "target")
"""Arguments that are base models; other files are control nets."""


def check_roles(files: Mapping[str, Path]) -> None:
    """Raises UnsupportedCheckpoint where a base model is given for a control net or vice versa.

    files: by the name of the argument; those of BASES are base models. Only headers are read.
    """
    wrong = {name: held for name, path in files.items() if (held := _misplaced(name, path))}
    if not wrong:
        return
    told = " and ".join(
        f"{name.upper()} is {files[name].name}, which holds a {held}"
        for name, held in wrong.items()
    )
    of_bases = {name in BASES for name in wrong}
    expected = "base model" if of_bases == {True} else "control net"
    advice = "swap them" if len(of_bases) > 1 else f"expected a {expected} there"
    raise UnsupportedCheckpoint(f"{told}: {advice}.")


def _misplaced(name: str, path: Path) -> str | None:
    """What the file holds, if that is what another argument is for."""
    header = read_header(path)
    kind = recognise(control_part(header.tensors))
    if kind is None or (name in BASES) == (kind.name == "base_model"):
        return None
    if name not in BASES:
        # What is neither is refused by the verb, with what to do with it.
        return kind.noun if kind.name == "base_model" else None
    try:
        # A whole checkpoint may hold both.
        base_weights(header)
    except CldmError:
        return kind.noun
    return None


def check_target(path: Path, *, force: bool) -> None:
    """Raises CldmError where a file of weights can't or mustn't be written; leaves nothing behind.

    Without `force` a file that is there isn't replaced. Missing folders are no mistake: they are
    made when the file is written.
    """
    if path.suffix != ".safetensors":
        raise CldmError(
            f"Weights can't be written as {path.name!r}: let the name end in .safetensors."
        )
    try:
        if path.is_dir():
            raise CldmError(f"{path} is a folder: give the name of a file.")
        if path.exists() and not force:
            raise CldmError(f"{path} is there already: choose another name, or add --force.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CldmError(
            f"{path} can't be written ({error.strerror}): choose another folder or name."
        ) from error
