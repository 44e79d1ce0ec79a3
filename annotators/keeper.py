"""Loaded networks: read safely, kept between calls, and given back on the device that is asked for.

A host that manages memory sets its own keeper (`use`); without one, the last few networks stay in
this process.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .base import needed
from .errors import Unavailable
from .weights import Weights, locate

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_KEPT = 4
WRAPPINGS = ("state_dict", "model", "params", "params_ema")
"""Under which name a checkpoint may hold its tensors, where it holds more besides."""

Thing = TypeVar("Thing")
Read = Callable[[Path], Mapping[str, "Tensor"]]


class Keeper(Protocol):
    """Who has loaded networks."""

    def kept(
        self, key: Hashable, build: Callable[[], Any], device: Any, size: int = 0
    ) -> AbstractContextManager[Any]:
        """What `build()` makes, or made under the same key before, on the device.

        device: a torch device, its name, or None for the best there is. Things that are no
        torch.nn.Module are kept where they are. size: about how many bytes of the device's memory
        such a thing takes.
        """

    def make_room(self, *, everything: bool) -> None:
        """Give back memory of the device that nothing is in; with `everything` all networks too."""


class Kept:
    """The default keeper: the last few things, in this process, used by one thread at a time."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self.most = most
        self._things: OrderedDict[Hashable, Any] = OrderedDict()
        # Two threads would load a network twice, and one would move it from under the other.
        self._lock = threading.RLock()

    @contextmanager
    def kept(
        self, key: Hashable, build: Callable[[], Any], device: Any, size: int = 0
    ) -> Iterator[Any]:
        """See Keeper."""
        with self._lock:
            thing = self.thing(key, build)
            yield thing.to(best_device(device)) if hasattr(thing, "parameters") else thing

    def make_room(self, *, everything: bool) -> None:
        """See Keeper."""
        if everything:
            self.clear()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()
            if torch.backends.mps.is_available():
                torch.mps.empty_cache()

    def thing(self, key: Hashable, build: Callable[[], Thing]) -> Thing:
        """What is kept under the key, built first if it isn't there; the oldest one goes."""
        if key not in self._things:
            while len(self._things) >= self.most:
                self._things.popitem(last=False)
            self._things[key] = build()
        self._things.move_to_end(key)
        thing: Thing = self._things[key]
        return thing

    def clear(self) -> None:
        """Let everything go, when nobody uses it."""
        with self._lock:
            self._things.clear()


_keeper: Keeper = Kept()


def use(keeper: Keeper) -> Keeper:
    """Let `keeper` have the networks from now on; gives the one before."""
    global _keeper
    before, _keeper = _keeper, keeper
    return before


def kept(
    key: Hashable, build: Callable[[], Any], device: Any, size: int = 0
) -> AbstractContextManager[Any]:
    """What `build()` makes, from the keeper in use; see Keeper."""
    return _keeper.kept(key, build, device, size)


def make_room(*, everything: bool) -> None:
    """Let the keeper in use give memory back; see Keeper."""
    _keeper.make_room(everything=everything)


@contextmanager
def network(
    weights: Weights,
    build: Callable[[Mapping[str, Tensor]], nn.Module],
    device: Any = None,
    *,
    read: Read | None = None,
) -> Iterator[Any]:
    """The network that `build` makes of the file's tensors, for inference, on the device.

    Gradients are off inside of the context. It is kept under the file and the function `build`
    (so let that be a function of a module, no lambda). `read` is for files that `tensors_of`
    can't read.
    """
    import torch

    if device is not None:
        device = best_device(device)  # a slip is told before anything is downloaded
    path = locate(weights)

    def load() -> nn.Module:
        return build((read or tensors_of)(path)).eval().requires_grad_(False)

    with kept((_identity(path), build), load, device) as net, torch.no_grad():
        yield net


@contextmanager
def session(weights: Weights, device: Any = None) -> Iterator[Any]:
    """An onnxruntime session of an .onnx file, on CUDA where that is asked for and can be had."""
    runtime = needed("onnxruntime")
    where = best_device(device)
    path = locate(weights)
    here = runtime.get_available_providers()
    on_cuda = where.type == "cuda" and "CUDAExecutionProvider" in here
    number = (where.index or 0) if on_cuda else None
    providers: list[Any] = ["CPUExecutionProvider"]
    if on_cuda:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))

    def load() -> Any:
        return runtime.InferenceSession(str(path), providers=providers)

    size = path.stat().st_size if on_cuda or where.type == "cpu" else 0
    with kept((_identity(path), number), load, where, size) as one:
        yield one


def outputs(net: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """What the net gives for (N, C, H, W): at once on a GPU, one by one on a processor.

    There a batch is up to 1.6 times slower than its pictures, which fit into the cache.
    """
    import torch

    parts = frames.split(1 if frames.device.type == "cpu" else len(frames))
    return torch.cat([net(part) for part in parts])


def best_device(device: Any = None) -> Any:
    """The torch device that is named, or the fastest one of this machine.

    Raises Unavailable, with what there is, where the named one isn't here.
    """
    import torch

    if device is not None:
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError) as error:
            raise Unavailable(
                f"The device {str(device)!r} can't be used here. There is: {', '.join(_devices())}."
            ) from error
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _devices() -> list[str]:
    """The names of this machine's devices; of other makes than these only best_device knows."""
    import torch

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file or a PyTorch checkpoint; no code in it is ever run.

    What wraps them is taken off: a dictionary around them, and "module." before every name.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise Unavailable(
            f"{path} can't be read as weights: it is damaged, or holds more than tensors, which is "
            "not loaded for safety. Get it again."
        ) from error
    while isinstance(content, dict) and (inner := _inner(content)) is not None:
        content = inner
    if not isinstance(content, dict):
        raise Unavailable(f"{path} holds no dictionary of tensors: it is another file.")
    found = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if found and all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _inner(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    held = (content.get(name) for name in WRAPPINGS)
    return next((one for one in held if isinstance(one, dict)), None)


def fill(
    net: nn.Module, tensors: Mapping[str, Tensor], *, unused: tuple[str, ...] = ()
) -> nn.Module:
    """The net with the tensors as its own; build it under torch.device("meta") to save memory.

    unused: beginnings of names in the file that the net has no place for. Raises Unavailable
    with how many names are missing or too many.
    """
    wanted = net.state_dict()
    usable = {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if not (unused and name.startswith(unused))
    }
    for what, names in (
        ("lacks", wanted.keys() - usable.keys()),
        ("has an unknown", usable.keys() - wanted.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise Unavailable(f"The file of weights {what} {min(names)}{more}: another file?")
    for name, value in usable.items():
        if value.shape != wanted[name].shape:
            raise Unavailable(
                f"{name} has the shape {tuple(value.shape)} in the file of weights, expected "
                f"{tuple(wanted[name].shape)}: another file?"
            )
    net.load_state_dict(usable, strict=True, assign=True)
    return net


def _identity(path: Path) -> tuple[str, int, int]:
    """The same only for the same file with the same content."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns
