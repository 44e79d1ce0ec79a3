"""A file of weights for tests of how it is found and fetched."""

import hashlib
from pathlib import Path

from controlnet_pack.annotators import Weights

BYTES = bytes(range(256)) * 4096  # 1 MiB
NET = Weights(
    repository="someone/nets",
    file="edges/net.pth",
    revision="main",
    bytes=len(BYTES),
    sha256=hashlib.sha256(BYTES).hexdigest(),
    licence="MIT",
    commercial=True,
    local_names=("old_net.pth",),
)


def put(path: Path, content: bytes = BYTES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
