"""MediaPipe's networks: the files of its wheel, run by ai-edge-litert on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from .base import Weights, needed
from .keeper import kept
from .pose_blaze import Floats
from .weights import locate

PACKAGE = "mediapipe"
PAGE = "the wheel (a zip file) of https://pypi.org/project/mediapipe/0.10.21, folder modules,"

Net: TypeAlias = Callable[..., list[Floats]]
"""Inputs such as (H, W, 3) to outputs, all without the axis of the batch."""
Nets: TypeAlias = Mapping[Weights, Net]
Open: TypeAlias = Callable[[bytes], Net]


def of_wheel(folder: str, name: str, size: int, sha256: str) -> Weights:
    """What is known of a network in the wheel, in this folder of its modules."""
    return Weights(
        repository="",
        file=f"{folder}/{name}.tflite",
        revision="0.10.21",
        bytes=size,
        sha256=sha256,
        licence="Apache-2.0",
        commercial=True,
        local_names=(f"{PACKAGE}/modules/{folder}/{name}.tflite", f"{folder}/{name}.tflite"),
        source=PAGE,
    )


@contextmanager
def networks(
    records: Sequence[Weights], device: Any, *, opened: Mapping[Weights, Open] | None = None
) -> Iterator[Nets]:
    """The networks of these files, kept between calls; on the CPU whatever the device is.

    opened: what makes a network of a file's bytes, for those of which `network` can't. Raises
    Unavailable where ai-edge-litert or a file isn't here.
    """
    _runtime()
    paths = {weights: _path(weights) for weights in records}

    def load() -> Nets:
        return {
            weights: (opened or {}).get(weights, network)(path.read_bytes())
            for weights, path in paths.items()
        }

    with kept((*map(str, paths.values()),), load, device) as found:
        yield found


def _path(weights: Weights) -> Path:
    """The file of the installed package, or else where weights are looked for."""
    package = importlib.util.find_spec(PACKAGE)
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder) / "modules" / weights.file
        if path.is_file():
            return path
    return locate(weights)


def network(model: bytes) -> Net:
    """The network of a file's content."""
    one = _runtime().Interpreter(model_content=model)
    one.allocate_tensors()
    entries = [detail["index"] for detail in one.get_input_details()]
    exits = [detail["index"] for detail in one.get_output_details()]

    def run(*inputs: Floats) -> list[Floats]:
        for index, values in zip(entries, inputs, strict=True):
            one.set_tensor(index, values[None])
        one.invoke()
        return [one.get_tensor(index)[0] for index in exits]

    return run


def _runtime() -> Any:
    return needed("ai_edge_litert.interpreter", to_install="ai-edge-litert")


def part(model: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """What lies between these tensors of a model, as a model of its own.

    ai-edge-litert runs no model with operations that it lacks; it does run the parts between them.
    """
    schema = needed("ai_edge_litert.schema_py_generated", to_install="'ai-edge-litert>=1.2'")
    flatbuffers = needed("flatbuffers")
    whole = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = whole.subgraphs[0]
    numbers = {tensor.name.decode(): number for number, tensor in enumerate(graph.tensors)}
    graph.inputs = [numbers[name] for name in inputs]
    graph.outputs = [numbers[name] for name in outputs]
    wanted, operators = set(graph.outputs), []
    for operator in reversed(graph.operators):
        if wanted.intersection(operator.outputs):
            wanted.update(set(operator.inputs).difference(graph.inputs))
            operators.append(operator)
    graph.operators = operators[::-1]
    whole.signatureDefs = None  # they name the whole model's inputs
    builder = flatbuffers.Builder(len(model))
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())
