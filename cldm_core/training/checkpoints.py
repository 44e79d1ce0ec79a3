"""The checkpoints of a run: each is whole or absent, and damage is seen before it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CldmError, DamagedCheckpoint

MANIFEST = "checkpoint.json"
PREFIX, PART, TRASH, DAMAGED = "step-", ".part-", ".trash-", "damaged-"
CHUNK = 1 << 24

Say = Callable[[str], None]


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: its folder, the steps behind it, and what was noted with it."""

    folder: Path
    step: int
    facts: Mapping[str, Any]


class Checkpoints:
    """Folders step-00000500, .. of one run; `keep` of them are kept, and the one scored best.

    A checkpoint is written into a folder of another name, its files and folder are synced, and then
    it is renamed: a process that is killed at any moment leaves the earlier ones as they were.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def open(self, step: int) -> Path:
        """An empty folder to write the files of a checkpoint into; raises CldmError."""
        part = self._part(step)
        try:
            self._sweep()
            part.mkdir(parents=True)
        except OSError as error:
            raise self._unwritable(step, error) from error
        return part

    def fill(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets `write` put files into the folder that `open` made.

        Raises CldmError, and leaves nothing behind, where there is no room for them.
        """
        try:
            write(self._part(step))
        except (OSError, RuntimeError, SafetensorError, CldmError) as error:
            shutil.rmtree(self._part(step), ignore_errors=True)
            raise self._unwritable(step, error) from error

    def seal(self, step: int, facts: Mapping[str, Any]) -> Path:
        """Makes a checkpoint of the files written since `open`, and drops old ones."""
        part, target = self._part(step), self.path(step)
        try:
            files = {path.name: _signature(path) for path in sorted(part.iterdir())}
            manifest = {"step": step, "files": files, "facts": dict(facts)}
            (part / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in (*part.iterdir(), part):
                _sync(path)
            if target.exists():  # of this very step, and damaged or written again
                self._remove(target)
            part.rename(target)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise self._unwritable(step, error) from error
        self._prune()
        return target

    def annotate(self, step: int, facts: Mapping[str, Any]) -> None:
        """Notes facts with the checkpoint of a step, if there is one; raises CldmError."""
        path = self.path(step) / MANIFEST
        if not path.is_file():
            return
        manifest = self._manifest(step)
        manifest["facts"] |= facts
        fresh = path.with_name(f"{PART}{MANIFEST}")
        try:
            fresh.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            _sync(fresh)
            fresh.replace(path)
        except OSError as error:
            raise self._unwritable(step, error) from error

    def latest(self, say: Say) -> Saved | None:
        """The last whole checkpoint, None where there is none yet.

        Of damaged ones `say` is told. Raises DamagedCheckpoint where all are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                saved = self.read(step)
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                continue
            for sentence in damaged:
                say(f"{sentence} The run goes on from step {step}, the last that is whole.")
            return saved
        if damaged:
            raise DamagedCheckpoint(
                f"{damaged[0]} There is no other one that is whole in {self.folder}: start anew in "
                f"another folder."
            )
        return None

    def read(self, step: int) -> Saved:
        """The checkpoint of a step; raises DamagedCheckpoint where a byte of it is missing."""
        folder, manifest = self.path(step), self._manifest(step)
        for name, signature in manifest["files"].items():
            state = _damage(folder / Path(name).name, signature)
            if state:
                raise DamagedCheckpoint(f"The checkpoint {folder} is damaged: {name} {state}.")
        return Saved(folder, step, manifest["facts"])

    def set_aside(self, step: int, say: Say) -> None:
        """Renames the checkpoints behind a step, all damaged: none is counted, or ranked, again."""
        for later in self.steps():
            path = self.path(later)
            kept = path.with_name(f"{DAMAGED}{path.name}")
            if later > step:
                shutil.rmtree(kept, ignore_errors=True)
                with suppress(OSError):  # where nothing can be renamed nothing can be saved either
                    path.rename(kept)
                    say(f"The damaged one is now {kept}; remove it when you like.")

    def _manifest(self, step: int) -> dict[str, Any]:
        """Signatures of the files, and facts; raises DamagedCheckpoint."""
        path = self.path(step) / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            return {**manifest, **{name: dict(manifest[name]) for name in ("files", "facts")}}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(
                f"The checkpoint {path.parent} is damaged: its {MANIFEST} can't be read."
            ) from error

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, whole or damaged, rising."""
        if not self.folder.is_dir():
            return []
        names = [path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def _part(self, step: int) -> Path:
        return self.folder / f"{PART}{step:08d}"

    def _prune(self) -> None:
        steps = self.steps()
        best = max(steps, key=self._rank)
        for step in steps[: -self.keep]:
            if step != best:
                self._remove(self.path(step))

    def _rank(self, step: int) -> tuple[float, int]:
        """Orders checkpoints by their merit, then by their step."""
        try:
            return float(self._manifest(step)["facts"]["merit"]), step
        except (DamagedCheckpoint, ValueError, KeyError, TypeError):
            return float("-inf"), step

    def _remove(self, path: Path) -> None:
        """Removed under another name: what is half gone is never taken for a checkpoint."""
        trash = path.with_name(f"{TRASH}{path.name}")
        shutil.rmtree(trash, ignore_errors=True)
        with suppress(OSError):  # what can't be removed does no harm
            path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _sweep(self) -> None:
        """Clears what killed processes left."""
        for pattern in (f"{PART}*", f"{TRASH}*"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path)

    def _unwritable(self, step: int, error: BaseException) -> CldmError:
        steps = self.steps()
        kept = f"the last one is of step {steps[-1]}" if steps else "there is none yet"
        return CldmError(
            f"The checkpoint of step {step} can't be written to {self.folder} "
            f"({' '.join(str(error).split())}). Make room on the disk and resume the run; earlier "
            f"checkpoints are as they were: {kept}."
        )


def _damage(path: Path, signature: list[Any]) -> str:
    """What is wrong with a file that had this signature; "" where nothing is."""
    try:
        return "" if _signature(path) == signature else "differs from what was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"can't be read ({error.strerror or error})"


def _signature(path: Path) -> list[Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
    return [path.stat().st_size, digest.hexdigest()]


def _sync(path: Path) -> None:
    """Has the disk keep a file or a folder's names, where the system can sync folders."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows syncs only what may be written to, the others open folders for reading alone.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
