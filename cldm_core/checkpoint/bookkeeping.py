"""What trainers save beside the weights, which PyTorch's reader of weights would refuse a file for.

The published .ckpt files of Stable Diffusion are Lightning's checkpoints and name its callbacks and
numbers of NumPy. The reader gets classes of the same names that do nothing, so that neither
package's own code runs, and none needs to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from torch import serialization


class _Ignored:
    """Takes anything, does nothing and keeps nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_NAMES: list[Any] = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
]


_LOCK = Lock()


@contextmanager
def only_bookkeeping() -> Iterator[None]:
    """Within it `torch.load(weights_only=True)` takes tensors and the classes that do nothing.

    What others have allowed, as ComfyUI and its packs do for the whole process, doesn't count:
    whether a file may be read depends on the file alone.
    """
    # What is allowed is the process's, so that one file is read at a time.
    with _LOCK:
        others = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        serialization.add_safe_globals(_NAMES)
        try:
            yield
        finally:
            # Others may have allowed more by now.
            now = serialization.get_safe_globals()
            serialization.clear_safe_globals()
            serialization.add_safe_globals([*others, *(one for one in now if one not in _NAMES)])
