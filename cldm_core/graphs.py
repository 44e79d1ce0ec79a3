"""A net's forward played from a recording: one launch for hundreds of GPU kernels (CUDA graphs).

On a fast GPU a net at batch 1 takes longer to be launched than to be computed, and the UNet behind
it waits. The kernels of a recording are those of the net itself, so are the numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .residuals import Residuals, map_residuals

MOST = 8
"""Recordings at a time: each size, batch and type has its own, and its own memory."""
SPARE = 2**30
"""Bytes of the GPU that must stay free for others."""
PLAYER = "cuda"
"""The kind of device that plays recordings."""
OUTPUTS = 8
"""Memory of a recording, in sizes of what it returns: 3.6 to 6.3 seen (benchmarks/gpu_ways.py)."""

Inputs = tuple[Tensor | None, ...]
Key = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]


@dataclass(frozen=True)
class _Recording:
    graph: Any
    inputs: Inputs
    result: Residuals

    def play(self, inputs: Inputs) -> Residuals:
        """What the net gives for these inputs, in the recording's own tensors."""
        for held, given in zip(self.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self.graph.replay()
        return self.result


class RecordedNet:
    """Calls of a net, recorded when they repeat and played from then on.

    Takes what the net takes, by position, all of it tensors or None, and gives what it gives. The
    first call of each size and type runs the net, and so does every call that can't be recorded:
    on another device, with weights elsewhere, with too little memory left. Weights that change in
    place are seen; where one has moved, everything is recorded anew. Recordings hold memory: call
    `drop` when the sampling ends.

    lends: whether results may be the recording's own tensors, which the next call writes over.
    That saves one set of residuals. Otherwise they are the caller's.

    Not for nets that read what isn't a parameter or buffer of theirs, nor for those that may wait
    for the GPU in their forward: CUDA refuses to record that, and with the allocator
    cudaMallocAsync PyTorch ends the process over it.
    """

    def __init__(self, net: nn.Module, *, lends: bool = False) -> None:
        self.net, self.lends = net, lends
        self.able = torch.cuda.is_available() and torch.version.hip is None
        self.played = 0
        # Before it is recorded, a key has the shapes of its result, on the device `meta`.
        self._recordings: dict[Key, _Recording | Residuals] = {}
        self._weights = list(_places(net)) if self.able else []
        self._addresses: tuple[int, ...] = ()
        self._pool: Any = None

    @property
    def warm(self) -> bool:
        """Whether calls have begun to repeat, or may."""
        return bool(self._recordings)

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor | None) -> Residuals:
        """The net's residuals for these inputs."""
        if not self.able or inputs[0] is None or inputs[0].device.type != PLAYER:
            return self._run(inputs)
        addresses = self._found(inputs[0].device)
        if not addresses:
            return self._run(inputs)
        if addresses != self._addresses:
            self._recordings.clear()
            self._addresses, self._pool = addresses, None
        key = tuple(None if one is None else (one.shape, one.dtype, one.device) for one in inputs)
        if key not in self._recordings:
            found = self._run(inputs)
            if len(self._recordings) < MOST and _room_for(found, inputs[0].device):
                self._recordings[key] = map_residuals(lambda one: one.to("meta"), found)
            return found
        recording = self._recordings[key]
        if isinstance(recording, Residuals):
            made = self._record(inputs, recording)
            if made is None:
                return self._run(inputs)
            self._recordings[key] = recording = made
        self.played += 1
        found = recording.play(inputs)
        return found if self.lends else map_residuals(torch.clone, found)

    def drop(self) -> None:
        """Gives the memory back, when what was played and lent is done with on either stream."""
        if self._recordings:
            for device in {key[0][2] for key in self._recordings if key[0]}:
                side, current = side_stream(device), torch.cuda.current_stream(device)
                current.wait_stream(side)
                side.wait_stream(current)
        self._recordings.clear()

    def _run(self, inputs: Inputs) -> Residuals:
        found: Residuals = self.net(*inputs)
        return found

    def _found(self, device: torch.device) -> tuple[int, ...]:
        """Where each weight is; nothing where one is on another device."""
        tensors = [owner[name] for owner, name in self._weights]
        if any(tensor.device != device for tensor in tensors):
            return ()
        return tuple(tensor.data_ptr() for tensor in tensors)

    def _record(self, inputs: Inputs, shapes: Residuals) -> _Recording | None:
        """A recording of the net for inputs of these shapes, None where it can't be made."""
        device = next(one.device for one in inputs if one is not None)
        held = tuple(None if one is None else one.clone() for one in inputs)
        result = map_residuals(lambda one: torch.empty_like(one, device=device), shapes)
        self._pool = self._pool or torch.cuda.graph_pool_handle()

        def compute() -> None:
            # What is made while a recording runs is its own: nothing of it may outlive this call.
            for kept, found in zip(tensors(result), tensors(self._run(held)), strict=True):
                kept.copy_(found)

        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            try:
                capture(graph, self._pool, compute)
                # Memory that a recording lacks is missed when it is played for the first time.
                graph.replay()
            except RuntimeError:  # out of memory among them
                self.able = False
                self._recordings.clear()
                return None
        return _Recording(graph, held, result)


def capture(graph: Any, pool: Any, compute: Callable[[], None]) -> None:
    """Records what `compute` launches; raises RuntimeError where that can't be recorded.

    PyTorch's own context manager empties its cache and collects garbage first, which takes longer
    than what a recording saves.
    """
    current = torch.cuda.current_stream()
    stream = side_stream(current.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream), _no_collection():
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            compute()
        except BaseException:
            _abandon(graph)
            raise
        graph.capture_end()
    current.wait_stream(stream)


@cache
def side_stream(device: torch.device) -> Any:
    """The one stream beside the usual: for recordings, and for work that may run meanwhile."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            # cuBLAS allocates a workspace per stream at its first matmul: do it now, so that no
            # graph owns it.
            for dtype in (torch.float32, torch.float16):
                ones = torch.ones(16, 16, device=device, dtype=dtype)
                torch.addmm(ones[0], ones, ones)
    return stream


def _abandon(graph: Any) -> None:
    """Ends a recording that failed, and has the random generator forget that there was one."""
    try:
        graph.capture_end()
    except RuntimeError:
        # CUDA refuses what was recorded; only an end that it accepts resets the generator.
        empty = torch.cuda.CUDAGraph()
        empty.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device="cuda")
        empty.capture_end()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's garbage collector, which could free other tensors of the GPU meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _places(net: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the net's modules keep their parameters and buffers: others may be put there."""
    for module in net.modules():
        for owner in (module._parameters, module._buffers):
            yield from ((owner, name) for name, tensor in owner.items() if tensor is not None)


def tensors(residuals: Residuals) -> list[Tensor]:
    """All of them, in one order."""
    items = (*residuals.input, *residuals.output, *residuals.middle)
    return [item for item in items if item is not None]


def _room_for(result: Residuals, device: torch.device) -> bool:
    """Whether the GPU has room for a recording whose result is of this size."""
    size = sum(item.numel() * item.element_size() for item in tensors(result))
    free: int = torch.cuda.mem_get_info(device)[0]
    return free > SPARE + OUTPUTS * size
