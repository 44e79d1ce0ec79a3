"""Files with weights: what is known about each, where it is looked for, and how it is fetched.

What a user has is taken first: the told folders, then the cache of huggingface_hub. Only then is
the file downloaded. A file with another digest than the record's is passed over, and stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import Unavailable

FOLDERS_VARIABLE = "CLDM_ANNOTATORS"
COMMERCIAL_VARIABLE = "CLDM_COMMERCIAL_ONLY"
# Names that many models share: such a file is only taken from a folder that names its repository.
COMMON_NAMES = {"model.safetensors", "pytorch_model.bin", "model.onnx", "model.pth", "model.pt"}


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    repository, file: where it is on the hub; a repository "" is on no hub: `source` then names the
    page where the file can be had.
    revision: a commit, or "main" where none is known.
    bytes, sha256: None where they aren't known. A file with another digest is refused.
    licence: its name; commercial: whether it allows commercial use.
    local_names: other names under which users have the same file.
    """

    repository: str
    file: str
    revision: str
    bytes: int | None
    sha256: str | None
    licence: str
    commercial: bool
    local_names: tuple[str, ...] = ()
    source: str = ""

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return PurePosixPath(self.file).name

    @property
    def page(self) -> str:
        """Where a user finds the file."""
        on_hub = f"https://huggingface.co/{self.repository}/blob/{self.revision}/{self.file}"
        return on_hub if self.repository else self.source


def environment_folders() -> list[Path]:
    """The folders that the environment variable CLDM_ANNOTATORS names."""
    named = os.environ.get(FOLDERS_VARIABLE, "")
    return [Path(folder) for folder in named.split(os.pathsep) if folder]


folders: Callable[[], Iterable[Path]] = environment_folders
"""Where to look, the first folder being the one to download into; a host sets its own."""


def environment_choice() -> bool:
    """Whether the environment variable CLDM_COMMERCIAL_ONLY is set to anything but 0."""
    return os.environ.get(COMMERCIAL_VARIABLE, "0") not in ("", "0")


commercial_only: Callable[[], bool] = environment_choice
"""Whether weights that may not be used commercially are switched off; a host sets its own."""

_given: dict[Weights, Path] = {}
_digests: dict[tuple[str, int, int], str] = {}


@contextmanager
def given(weights: Weights, path: Path) -> Iterator[None]:
    """Inside, `path` is taken for these weights as it is: a file of one's own, or a test's."""
    before = _given.copy()
    _given[weights] = path
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def locate(weights: Weights) -> Path:
    """The file, fetched where it isn't here yet; raises Unavailable with what to do."""
    if weights in _given:
        return _given[weights]
    if commercial_only() and not weights.commercial:
        raise Unavailable(
            f"{weights.name} may not be used commercially ({weights.licence}), and such weights "
            "are switched off here: choose another annotator, or start without "
            f"{COMMERCIAL_VARIABLE} in the environment."
        )
    refused: dict[Path, Unavailable] = {}
    for path in places(weights):
        try:
            _check(weights, path)
        except Unavailable as error:
            refused[path] = error
        else:
            return path
    return _fetched(weights, refused)


def places(weights: Weights) -> Iterator[Path]:
    """The files that may be it, by their names: in the told folders, then in the hub's cache."""
    for folder in folders():
        for name in dict.fromkeys(_names(weights)):
            if (folder / name).is_file():
                yield folder / name
    yield from _in_hub_cache(weights)


def _fetched(weights: Weights, refused: Mapping[Path, Unavailable]) -> Path:
    """The file, downloaded; those that were refused are told of where it can't be had."""
    folder = next(iter(folders()), None)
    target = None if folder is None else folder / weights.repository / weights.file
    if target is not None and weights.repository and target in refused:
        raise _in_the_way(refused[target])
    try:
        path = _download(weights, folder, target)
    except Unavailable as error:
        raise Unavailable(" ".join(map(str, (*refused.values(), error)))) from error
    if path in refused:  # the hub's cache had it already
        raise _in_the_way(refused[path])
    try:
        _check(weights, path)
    except Unavailable as error:
        # In the hub's cache a file is a link to the one with the bytes.
        for file in {path, path.resolve()}:
            file.unlink(missing_ok=True)
        raise Unavailable(
            f"{error} The download was removed: try again, or tell us if it stays so."
        ) from error
    return path


def _in_the_way(error: Unavailable) -> Unavailable:
    return Unavailable(f"{error} Delete or move that file, and it is downloaded anew.")


def _names(weights: Weights) -> list[str]:
    """Paths inside of a folder under which the file may lie, the likeliest first."""
    bare = [name for name in (weights.name, *weights.local_names) if name not in COMMON_NAMES]
    if not weights.repository:
        return bare
    owner, _, repository = weights.repository.partition("/")
    return [
        f"{weights.repository}/{weights.file}",
        f"{weights.repository}/{weights.name}",
        f"{repository or owner}/{weights.file}",
        *([weights.file] if "/" in weights.file else []),
        *bare,
    ]


def _in_hub_cache(weights: Weights) -> list[Path]:
    if not weights.repository:
        return []
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return []
    # What others have fetched is kept under "main"; its digest is looked at where it is known.
    found = [
        try_to_load_from_cache(weights.repository, weights.file, revision=revision)
        for revision in (weights.revision, "main")
    ]
    return [Path(path) for path in found if isinstance(path, str)]


def _check(weights: Weights, path: Path) -> None:
    """Raises Unavailable where size or digest differ; reads each file once in a process."""
    state = path.stat()
    if weights.bytes is not None and state.st_size != weights.bytes:
        raise Unavailable(
            f"{path} has {state.st_size} bytes, but {weights.name} has {weights.bytes}: it is "
            "damaged, or another file."
        )
    if weights.sha256 is None:
        return
    key = (str(path), state.st_size, state.st_mtime_ns)
    if key not in _digests:
        _digests[key] = _digest(path)
    if _digests[key] != weights.sha256.lower():
        raise Unavailable(
            f"{path} has another SHA-256 digest than {weights.name} is known to have: it is "
            "damaged, or another file."
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(weights: Weights, folder: Path | None, target: Path | None) -> Path:
    """From the hub, to the target in the folder or else the hub's cache; whole or not at all."""
    if not weights.repository:
        raise _absent(weights, folder, "it is on no hub")
    try:
        from . import downloads
    except ImportError:
        raise _absent(weights, folder, "huggingface_hub isn't installed") from None
    where = weights.repository, weights.file, weights.revision
    try:
        if target is None:
            return downloads.into_cache(*where)
        return downloads.into(target, *where)
    except Exception as error:
        if not _is_of_the_download(error):
            raise
        raise _absent(weights, folder, _reason(error)) from error


def _is_of_the_download(error: Exception) -> bool:
    """Whether the hub, the net or the disk failed; anything else, as an interrupt, goes on up."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, ValueError)) or package in (
        "huggingface_hub",
        "httpx",
        "httpx2",
        "requests",
        "urllib3",
    )


def _reason(error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    first = next(iter(str(error).strip().splitlines()), "")
    return first.rstrip(".") or type(error).__name__


def _absent(weights: Weights, folder: Path | None, reason: str) -> Unavailable:
    size = "" if weights.bytes is None else f" ({weights.bytes / 1e6:.0f} MB)"
    where = folder if folder is not None else f"a folder that {FOLDERS_VARIABLE} names"
    return Unavailable(
        f"{weights.name}{size} isn't here and couldn't be downloaded: {reason}. "
        f"Get it from {weights.page} and put it into {where}."
    )
