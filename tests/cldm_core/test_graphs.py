"""What RecordedNet does with recordings, played by a processor: the tests on a GPU see the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import Residuals, graphs
from controlnet_pack.cldm_core.graphs import RecordedNet


class Graph:
    """Stands in for a CUDA graph: computes again, into the same memory."""

    compute: Callable[[], None]

    def replay(self) -> None:
        self.compute()


def capture(graph: Graph, _: Any, compute: Callable[[], None]) -> None:
    graph.compute = compute


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor as the device that plays recordings."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {"capture": capture, "_room_for": lambda *_: True, "PLAYER": "cpu"}.items():
        monkeypatch.setattr(graphs, name, value)
    monkeypatch.setattr(graphs, "side_stream", lambda _: stream)
    for name, value in {
        "is_available": lambda: True,
        "CUDAGraph": Graph,
        "graph_pool_handle": object,
        "device": lambda _: nullcontext(),
        "current_stream": lambda _: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


class Net(nn.Module):
    """Gives x times its weight; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor, _: Tensor | None) -> Residuals:
        self.calls += 1
        return Residuals(output=(x * self.weight, None), middle=(x + self.weight,))


def called(recorded: RecordedNet, *numbers: float) -> list[Residuals]:
    return [recorded(torch.tensor([number]), None) for number in numbers]


def values(found: list[Residuals]) -> list[float]:
    return [float(one.output[0]) for one in found if one.output[0] is not None]


def test_results_are_the_caller_s() -> None:
    recorded = RecordedNet(Net())
    assert values(called(recorded, 1, 2, 3, 4)) == [2, 4, 6, 8]
    assert recorded.played == 3


def test_what_is_lent_is_written_over_by_the_next_call() -> None:
    recorded = RecordedNet(Net(), lends=True)
    assert values(called(recorded, 1, 2, 3, 4)) == [2, 8, 8, 8], "the first isn't recorded yet"
    assert values(called(recorded, 5)) == [10]


def test_weights_that_moved_are_recorded_anew() -> None:
    net = Net()
    recorded = RecordedNet(net)
    called(recorded, 1, 2)
    net.weight.mul_(2)
    assert values(called(recorded, 3)) == [12]
    net.weight = nn.Parameter(torch.tensor(5.0), requires_grad=False)
    assert values(called(recorded, 3, 3)) == [15, 15]
    assert recorded.played == 3, "the first call after the move isn't played"


def test_what_was_dropped_is_recorded_anew() -> None:
    recorded = RecordedNet(Net())
    called(recorded, 1, 2)
    recorded.drop()
    assert not recorded.warm
    assert values(called(recorded, 3)) == [6]
    assert recorded.played == 1


def test_what_cant_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(graphs, "capture", refuse)
    net = Net()
    recorded = RecordedNet(net)
    assert values(called(recorded, 1, 2, 3)) == [2, 4, 6]
    assert (recorded.played, net.calls) == (0, 3)
