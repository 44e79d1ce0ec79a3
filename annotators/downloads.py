"""Files from the hub, by the means of huggingface_hub: its mirror, its token, its offline mode.

Only imported by functions, since huggingface_hub is heavy. Its own hf_hub_download starts anew
after a process has ended; here what has come is kept and gone on with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import HfFileMetadata, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils import tqdm as bar  # type: ignore[attr-defined]

from .progress import tell


def into(target: Path, repository: str, file: str, revision: str) -> Path:
    """The file at `target`; what an interrupted download has left beside it is gone on with.

    Of several processes that want it one fetches it, and the others wait. Raises OSError where
    what came has another size than the hub says.
    """
    url = hf_hub_url(repository, file, revision=revision)
    known = get_hf_file_metadata(url)
    headers = build_hf_headers()
    if urlsplit(url).netloc != urlsplit(known.location).netloc:
        headers.pop("authorization", None)  # that is for the hub alone
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another version of the file has another tag, and is begun anew.
    part = target.with_name(f"{target.name}.{(known.etag or 'x')[:16]}.part")
    with _alone(part, target, known.size or 0):
        if target.is_file():
            return target
        _fetch(part, known, headers, target.name)
        return part.replace(target)


def _fetch(part: Path, known: HfFileMetadata, headers: dict[str, str], name: str) -> None:
    """What the file at `part` lacks; the `name` is for who listens."""
    with part.open("ab") as out:
        if known.size is not None and out.tell() > known.size:
            out.seek(0)
            out.truncate()
        if known.size is None or out.tell() < known.size:
            http_get(
                known.location,
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=known.size,
                **_telling(http_get, name),
            )
    size = part.stat().st_size
    if known.size not in (None, size):
        raise OSError(f"{size} bytes came, expected {known.size}")


@contextmanager
def _alone(part: Path, target: Path, size: int) -> Iterator[None]:
    """Inside, no other process writes the part; who waits is told how far it is.

    The lock's file is a hidden one. It goes with the part, when the target is whole.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            tell(target.name, part.stat().st_size if part.is_file() else 0, size)
        except FileNotFoundError:  # removed while filelock opened it, as below
            if not target.is_file():
                raise
        except NotImplementedError:  # of older versions, where the disk knows no locks
            break
    try:
        yield
    finally:
        lock.release()
        # As long as there is something to fetch, all have to lock the same file: older versions of
        # filelock may hold a removed one beside who holds its successor.
        if target.is_file():
            with suppress(OSError):  # Windows deletes no file that another process has open
                Path(lock.lock_file).unlink(missing_ok=True)


def into_cache(repository: str, file: str, revision: str) -> Path:
    """The file in the hub's cache."""
    options = _telling(hf_hub_download, Path(file).name)
    return Path(hf_hub_download(repository, file, revision=revision, **options))


def _telling(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """What makes the function's bar tell our listener; older versions have no door for that."""
    if "tqdm_class" not in inspect.signature(function).parameters:
        return {}

    class Bar(bar):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            self._told = self.n  # what an earlier try has fetched

        def update(self, n: float | None = 1) -> bool | None:
            # Counted here: a bar that isn't shown counts nothing.
            self._told += n or 0
            tell(name, int(self._told), int(self.total or 0))
            shown: bool | None = super().update(n)
            return shown

    return {"tqdm_class": Bar}
