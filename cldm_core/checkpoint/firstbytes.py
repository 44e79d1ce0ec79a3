"""Files that are no weights at all, told from their first bytes: what a failed download leaves."""

from __future__ import annotations

from pathlib import Path

from ..errors import DamagedCheckpoint

TORCH_ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
PROBED = 512
"""Bytes that are looked at."""

_AGAIN = "download the file itself"
_STRANGERS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file: run git lfs pull in its folder",
    ),
    (b"<", f"is a web page, not a model: the download needs a login, or {_AGAIN}"),
    (b"{", f"is a text file (JSON), not a model: {_AGAIN}"),
)


def require_weights(path: Path) -> None:
    """Raises DamagedCheckpoint where a file is empty, a pointer, a web page or another text.

    Weights are binary: files of safetensors start with a length, in which there are zeros, and
    those of PyTorch with an archive's or a pickle's sign.
    """
    with open(path, "rb") as handle:
        start = handle.read(PROBED)
    if not start:
        raise DamagedCheckpoint(
            f"{path.name} is empty (0 bytes): its download or copy was truncated, so get it again."
        )
    if not _is_text(start):
        return
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    otherwise = f"is a text file, not a model: {_AGAIN}"
    told = next((words for sign, words in _STRANGERS if text.startswith(sign)), otherwise)
    raise DamagedCheckpoint(f"{path.name} {told}.")


def kind_of(path: Path) -> str:
    """What a file of that name ought to be, for messages."""
    return "a PyTorch file" if path.suffix in TORCH_ENDINGS else "safetensors"


def _is_text(start: bytes) -> bool:
    """Whether these are printed letters of UTF-8, of which the last may be cut."""
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if len(start) - error.start > 3 or len(start) < PROBED:
            return False
        text = start[: error.start].decode()
    return all(letter.isprintable() or letter.isspace() for letter in text)
