"""Training runs on disk: their folders below the host's output, and their pictures."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...cldm_core import CldmError
from ...cldm_core.pictures import read_picture
from ...cldm_core.training.checkpoints import PREFIX
from ...cldm_core.training.history import FILE as HISTORY
from ...cldm_core.training.reports import PLOT, SHEET
from ..images import to_image
from .training_data import RUNS


def run_folder(name: str, *, resume: bool = False) -> Path:
    """The folder of a run below the host's output folder; raises CldmError for a bad name.

    Where one of this name is there and isn't to be gone on with, it gets a number. A folder that
    holds nothing but encoded pictures, as of a run that ended before its first step, is free.
    """
    root = _root()
    wanted = (root / name.strip()).resolve()
    if wanted == root or not wanted.is_relative_to(root):
        raise CldmError(f"The run can't be called {name!r}: give a name, as for a file.")
    folder, number = wanted, 1
    while not resume and _holds_run(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}_{number}")
    return folder


def run_name(folder: Path) -> str:
    """What to give as the name to mean a run's folder."""
    return folder.relative_to(_root()).as_posix()


def _root() -> Path:
    return (Path(folder_paths.get_output_directory()) / RUNS).resolve()


def _holds_run(folder: Path) -> bool:
    return (folder / HISTORY).exists() or any((folder / "checkpoints").glob(f"{PREFIX}*"))


def named_run(name: str) -> Path:
    """The folder that a name or a whole path means."""
    given = Path(name.strip()).expanduser()
    return given if given.is_absolute() else run_folder(name, resume=True)


def run_stamp(folder: Path) -> tuple[int, ...]:
    """Other numbers once the pictures of a run are others."""
    files = (folder / place for place in (PLOT, SHEET))
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


def require_run(folder: Path) -> None:
    """Raises CldmError where there is no run in the folder."""
    if not (folder / HISTORY).exists():
        raise CldmError(
            f"There is no training run in {folder}: give the folder of one, or the name that it "
            f"has in Train ControlNet."
        )


def run_pictures(folder: Path) -> tuple[Tensor, Tensor]:
    """Plot and samples of a run; black where there are none yet."""
    plot, samples = (
        to_image([read_picture(folder / name)])
        if (folder / name).exists()
        else torch.zeros(1, 64, 64, 3)
        for name in (PLOT, SHEET)
    )
    return plot, samples
