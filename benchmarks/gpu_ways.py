"""Ways to run a ControlNet beside the UNet on a GPU, without approximations: a step's time by each.

SD 1.5 and SDXL at full size, random weights, half precision, guidance (two texts), the core alone.
All ways take turns; prints a table and writes results/gpu_ways.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cldm_core import SD15, SDXL, ControlledUNet, ControlNet, ControlNetConfig, Residuals  # noqa: E402
from cldm_core.graphs import RecordedNet  # noqa: E402

CASES = {"SD 1.5, 512": (SD15, 64), "SD 1.5, 1024": (SD15, 128), "SDXL, 1024": (SDXL, 128)}
STEPS = 20
RESULT = ROOT / "benchmarks" / "results" / "gpu_ways.json"


class Late:
    """Residuals that another stream computes; whoever reads them waits."""

    input = ()

    def __init__(self, found: Residuals, event: Any) -> None:
        self._found, self._event = found, event

    @property
    def middle(self) -> tuple[Any, ...]:
        torch.cuda.current_stream().wait_event(self._event)
        return self._found.middle

    @property
    def output(self) -> tuple[Any, ...]:
        return self._found.output


class World:
    """A UNet, a net, and what both read."""

    def __init__(self, config: Any, size: int) -> None:
        torch.manual_seed(1)
        with torch.device("cuda"):
            self.unet = ControlledUNet(config).half().eval().requires_grad_(False)
            self.net = ControlNet(ControlNetConfig(config)).half().eval().requires_grad_(False)
            for parameter in (*self.unet.parameters(), *self.net.parameters()):
                if not parameter.any():
                    parameter.normal_(std=0.02)
            self.x = torch.randn(2, 4, size, size).half()
            self.context = torch.randn(2, 77, config.context_dim).half()
            wide = config.adm_in_channels
            self.y = None if wide is None else torch.randn(2, wide).half()
            self.features = self.net.encode_hint(torch.rand(1, 3, 8 * size, 8 * size).half())
            self.time = torch.full((2,), 500.0)
        self.stream = torch.cuda.Stream()

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        return self.x, self.features, self.time, self.context, self.y

    def step(self, control: Any = None) -> Tensor:
        return self.unet(self.x, self.time, self.context, self.y, control=control)

    def ways(self, compiled: bool) -> dict[str, Callable[[], Tensor]]:
        """A step by each way."""
        recorded, beside = RecordedNet(self.net), RecordedNet(self.net)

        def on_a_stream(net: Any) -> Tensor:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                found = net(*self.inputs)
            event = self.stream.record_event()
            return self.step(Late(found, event))

        found = {
            "no control": self.step,
            "net, then UNet": lambda: self.step(self.net(*self.inputs)),
            "net on a stream of its own": lambda: on_a_stream(self.net),
            "recorded net, then UNet": lambda: self.step(recorded(*self.inputs)),
            "recorded net on a stream": lambda: on_a_stream(beside),
        }
        if compiled:
            net = torch.compile(self.net)
            found["compiled net, then UNet"] = lambda: self.step(net(*self.inputs))
        return found


def seconds(step: Callable[[], Tensor]) -> float:
    """Of a step, in a row of STEPS."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def memory(world: World) -> dict[str, float]:
    """MB: of what the net returns, of a forward's peak beyond it, and of a recording."""

    def allocated() -> float:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() / 2**20

    before = allocated()
    torch.cuda.reset_peak_memory_stats()
    result = world.net(*world.inputs)
    returned, peak = allocated() - before, torch.cuda.max_memory_allocated() / 2**20 - before
    del result
    reserved = torch.cuda.memory_reserved() / 2**20
    recorded = RecordedNet(world.net)
    for _ in range(2):
        recorded(*world.inputs)
    held = torch.cuda.memory_reserved() / 2**20 - reserved
    return {"returned": round(returned, 1), "peak": round(peak, 1), "recording": round(held, 1)}


def difference(world: World) -> float:
    """The most that a recorded net's step differs from the plain one's."""
    recorded = RecordedNet(world.net)
    recorded(*world.inputs)
    return float(
        (world.step(recorded(*world.inputs)) - world.step(world.net(*world.inputs))).abs().max()
    )


@torch.inference_mode()
def measure(config: Any, size: int, rounds: int, compiled: bool) -> dict[str, Any]:
    world = World(config, size)
    ways = world.ways(compiled)
    for step in ways.values():
        for _ in range(3):
            step()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            taken[name].append(seconds(step))
    middle = {name: median(values) for name, values in taken.items()}
    base, plain = middle["no control"], middle["net, then UNet"]
    rows = {
        name: {
            "ms": round(1000 * value, 3),
            "spread": [round(1000 * one, 3) for one in (min(taken[name]), max(taken[name]))],
            "ratio": round(value / base, 3),
            "added": round((value - base) / (plain - base), 3),
        }
        for name, value in middle.items()
    }
    return {"rows": rows, "memory": memory(world), "difference": difference(world)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too (minutes)")
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device: torch.cuda.is_available() is False.")
    named = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    result: dict[str, Any] = {"machine": named, "cases": {}}
    for name in args.only or CASES:
        found = result["cases"][name] = measure(*CASES[name], args.rounds, args.compiled)
        print(f"{name}: memory {found['memory']}, differs by {found['difference']}")
        for way, row in found["rows"].items():
            print(
                f"  {way:30}{row['ms']:9.2f} ms{row['ratio']:8.3f}{row['added']:8.3f}", flush=True
            )
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
