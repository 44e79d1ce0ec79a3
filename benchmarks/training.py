"""What a step of training costs: full fine-tuning, diffusers' train_controlnet, ours.

Each row runs in processes of its own, in turns; medians go to results/training*.json and a table
is printed. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FULL, FULL_LEAN, DIFFUSERS = "full", "full_lean", "diffusers"
OURS, OURS_PLAIN = "ours", "ours_plain"
ROWS = (FULL, DIFFUSERS, OURS, OURS_PLAIN)
ALL_ROWS = (*ROWS, FULL_LEAN)
CPU_SIZES = (32, 64)
GPU_BATCHES = (1, 4, 16, 32)
PAPER_BATCH = 32
"""At 64x64 with checkpointing: what the paper's card had room for."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
PARTS = ("forward", "backward", "optimizer")
SHAPE = ("size", "batch", "checkpointing")


def worker(row: str, shapes: list[dict[str, Any]], args: argparse.Namespace, steps: int) -> Any:
    """The records of one row, from a process of its own."""
    if row == OURS_PLAIN:  # checkpointing takes the other layers
        shapes = [shape for shape in shapes if not shape["checkpointing"]]
    if not shapes:
        return []
    order = {
        "row": row,
        "shapes": shapes,
        "small": args.small,
        "device": args.device,
        "half": args.device == "cuda",
        "steps": steps,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "training_rows.py"), json.dumps(order)],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        print(f"{row} failed: {tail[0]}", flush=True)
        return [{**shape, "refused": tail[0]} for shape in shapes]
    return json.loads(done.stdout.splitlines()[-1])


def shape(size: int, batch: int, checkpointing: bool = False) -> dict[str, Any]:
    return {"size": size, "batch": batch, "checkpointing": checkpointing}


def timed_shapes(args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """What one process measures together: on a CPU one shape, on a GPU all."""
    if args.device != "cuda":
        return [[shape(size, 1)] for size in args.size or ((8, 16) if args.small else CPU_SIZES)]
    batches = args.batch or GPU_BATCHES
    return [[shape(largest(args), batch, ck) for ck in (False, True) for batch in batches]]


def counted_shapes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """For the paper's batch: memory grows by the same with each picture."""
    return [shape(largest(args), batch, True) for batch in (1, 2)]


def largest(args: argparse.Namespace) -> int:
    return 16 if args.small else 64


def merged(runs: list[Any]) -> list[dict[str, Any]]:
    """The records of a row's turns, by shape: medians of all steps."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for records in runs:
        for record in records:
            found.setdefault(tuple(record[name] for name in SHAPE), []).append(record)
    return [summary(records) for records in found.values()]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    good = [record for record in records if "refused" not in record]
    first = (good or records)[0]
    result = {name: first[name] for name in SHAPE}
    if not good:
        return {**result, "refused": first["refused"]}
    result["gb"] = {name: round(value / 1e9, 3) for name, value in first["bytes"].items()}
    result["gb"]["sum"] = round(sum(first["bytes"].values()) / 1e9, 3)
    if "seconds" not in first:
        return result
    result["peak_gb"] = round(max(record["peak"] for record in good) / 1e9, 3)
    if "held" in first:
        result["held_gb"] = round(first["held"] / 1e9, 3)
    for clock in ("seconds", "processor"):
        medians = {
            part: statistics.median(value for record in good for value in record[clock][part])
            for part in PARTS
        }
        medians["forward_backward"] = medians["forward"] + medians["backward"]
        medians["total"] = medians["forward_backward"] + medians["optimizer"]
        result[clock] = {name: round(value, 4) for name, value in medians.items()}
    result["steps"] = sum(len(record["seconds"]["forward"]) for record in good)
    return result


def extrapolated(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The memory at the paper's batch, from those of 1 and 2 pictures."""
    kept = {record["batch"]: record["gb"]["kept"] for record in records if "gb" in record}
    if set(kept) != {1, 2}:
        return None
    each = kept[2] - kept[1]
    sizes = {**records[0]["gb"], "kept": round(kept[1] + (PAPER_BATCH - 1) * each, 3)}
    sizes["sum"] = round(sum(v for name, v in sizes.items() if name != "sum"), 3)
    one = {"size": records[0]["size"], "batch": PAPER_BATCH, "checkpointing": True}
    return {**one, "gb": sizes, "gb_each": round(each, 4)}


def with_ratios(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Writes into each record what it is of full fine-tuning's of the same shape."""
    whole = {tuple(r[name] for name in SHAPE): r for r in rows.get(FULL, ()) if "gb" in r}
    for records in rows.values():
        for record in records:
            base = whole.get(tuple(record[name] for name in SHAPE))
            if base is None or "gb" not in record:
                continue
            ratios = {"memory": record["gb"]["sum"] / base["gb"]["sum"]}
            if "seconds" in record:
                ratios["peak"] = record["peak_gb"] / base["peak_gb"]
                for clock in ("seconds", "processor"):
                    for part in ("forward_backward", "total"):
                        ratios[f"{clock}_{part}"] = record[clock][part] / base[clock][part]
            record["of_full"] = {name: round(value, 3) for name, value in ratios.items()}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    names = ("forward", "backward", "optimizer", "total")
    lines = [
        f"{'':12}{'latents':>8}{'batch':>6}{'ckpt':>6}"
        + "".join(f"{name:>11}" for name in names)
        + f"{'fwd+bwd':>9}{'total':>7}{'GB':>8}{'kept':>8}{'of full':>8}{'peak':>8}"
    ]
    shapes = dict.fromkeys(tuple(r[n] for n in SHAPE) for rs in rows.values() for r in rs)
    for key in shapes:
        for row, records in rows.items():
            for record in records:
                if tuple(record[name] for name in SHAPE) == key:
                    lines.append(line(row, record, names))
    return "\n".join(lines)


def line(row: str, record: dict[str, Any], names: tuple[str, ...]) -> str:
    start = f"{row:12}{record['size']:8}{record['batch']:6}{record['checkpointing']!s:>6}"
    if "refused" in record:
        return f"{start}  {record['refused']}"
    seconds, of_full = record.get("seconds", {}), record.get("of_full", {})

    def cell(values: dict[str, Any], name: str, width: int, digits: int) -> str:
        return f"{values[name]:{width}.{digits}f}" if name in values else " " * width

    return (
        start
        + "".join(cell(seconds, name, 11, 4) for name in names)
        + cell(of_full, "seconds_forward_backward", 9, 3)
        + cell(of_full, "seconds_total", 7, 3)
        + cell(record["gb"], "sum", 8, 2)
        + cell(record["gb"], "kept", 8, 2)
        + cell(of_full, "memory", 8, 3)
        + cell(record, "peak_gb", 8, 2)
    )


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    found = {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return {**found, "gpu": torch.cuda.get_device_name()} if device == "cuda" else found


def able(rows: tuple[str, ...]) -> dict[str, str]:
    """Why a row can't run, for those that can't."""
    missing = DIFFUSERS in rows and find_spec("diffusers") is None
    return {DIFFUSERS: "diffusers is not installed here"} if missing else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="turns of each row; default 3, on a GPU 2")
    parser.add_argument("--steps", type=int, help="steps of each turn; default 2, on a GPU 5")
    parser.add_argument("--size", type=int, action="append", help="latents' sides, on a CPU")
    parser.add_argument("--batch", type=int, action="append", help="batches, on a GPU")
    parser.add_argument(
        "--row", action="append", choices=ALL_ROWS, help=f"default: all but {FULL_LEAN}"
    )
    parser.add_argument("--small", action="store_true", help="a tenth of the width, to try it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cuda = args.device == "cuda"
    chosen = tuple(args.row or ROWS)
    skipped = able(chosen)
    for row, reason in skipped.items():
        print(f"{row}: left out, {reason}")
    rounds, steps = args.rounds or (2 if cuda else 3), args.steps or (5 if cuda else 2)
    out = args.out or RESULTS / f"training{'-cuda' if cuda else ''}.json"
    runs: dict[str, list[Any]] = {row: [] for row in chosen if row not in skipped}
    # A GPU has room for the paper's batch itself.
    counted = {} if cuda else {row: worker(row, counted_shapes(args), args, 0) for row in runs}
    for number in range(rounds):
        for shapes in timed_shapes(args):
            # In turn, so that whatever else the machine does falls on all of them.
            for row, records in runs.items():
                records.append(worker(row, shapes, args, steps))
        rows = {row: merged(records) for row, records in runs.items()}
        paper = {row: [extrapolated(merged([c]))] for row, c in counted.items()}
        paper = {row: [r for r in records if r] for row, records in paper.items()}
        for part in (rows, paper):
            with_ratios(part)
        result = {
            "machine": machine(args.device),
            "rounds": number + 1,
            "skipped": skipped,
            "rows": rows,
            "paper": paper,
        }
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if paper:
        print(
            f"\nthe paper's batch, {PAPER_BATCH}, from what 1 and 2 pictures keep:\n{table(paper)}"
        )


if __name__ == "__main__":
    main()
