"""How long a step takes with control, in a real ComfyUI: this pack's ways and other packs'.

Starts each host with its own Python, has all ways of sampling take turns, prints a table and writes
results/apply-VERSION.json after every round; see README.md. --memory and --quality measure those.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from apply_variants import BUILT_IN, EXACT, NONE, VARIANTS, Variant

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
INSIDE = Path(__file__).with_name("apply_host.py")

sys.path.insert(0, str(ROOT))

from tests.host.hosts import (  # noqa: E402
    NO_HOST,
    HostInstall,
    find_hosts,
    install_pack,
    python_of,
)

WARM_UP = 10
"""Runs that aren't counted where memory's growth is measured."""


def records(install: HostInstall, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the process inside the host tells, as it tells it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base"
        task = {
            **{key: getattr(args, key) for key in ("act", "device", "threads", "pairs", "only")},
            **{key: getattr(args, key) for key in ("small", "repeat", "runs", "seeds")},
            "advanced": args.advanced and str(args.advanced.resolve()),
            "root": str(install.root),
            "base": str(base),
            "pack": str(install_pack(base / "custom_nodes", args.pack.resolve())),
        }
        running = subprocess.Popen(
            [install.python, str(INSIDE), json.dumps(task)],
            env=install.environment(folder / "standins"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert running.stdout is not None
        with running:
            for line in running.stdout:
                if line.startswith('{"kind"'):
                    yield json.loads(line)
        if running.returncode:
            raise SystemExit(f"ComfyUI {install.version} ended with {running.returncode}")


# Steps.


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Median, quartiles and extremes."""
    quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    found = {"median": median(values), "lower": quarters[0], "upper": quarters[2]}
    found |= {"min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def summary(timings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each variant: seconds per step, ratio to no control in the same round, what it saves."""
    taken = {(one["variant"], one["round"]): one for one in timings}
    rows: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        own = {turn: one for (name, turn), one in taken.items() if name == variant.name}
        if not own:
            continue
        seconds = spread([one["step"] for one in own.values()], 4)
        row = rows[variant.name] = {"seconds": seconds}
        row["peak"] = median(one["peak"] for one in own.values())
        pairs = [(one, taken.get((variant.baseline, turn))) for turn, one in own.items()]
        for name, clock in (("ratio", "step"), ("cpu_ratio", "cpu")):
            if ratios := [one[clock] / base[clock] for one, base in pairs if base]:
                row[name] = spread(ratios)
    for variant in VARIANTS:
        if variant.left < 1 and {variant.name, EXACT} <= rows.keys():
            rows[variant.name] |= savings(variant, rows)
    return rows


def savings(variant: Variant, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Which share of what arithmetic lets this variant save it does save.

    share: of the time that exact control adds in the same run; share_absolute: of the arithmetic's
    1.344, down to the target.
    """
    if "ratio" not in rows[EXACT] or "ratio" not in rows[variant.name]:
        return {}
    exact, found = (rows[name]["ratio"]["median"] for name in (EXACT, variant.name))
    possible = (exact - 1) * (1 - variant.left)
    whole = VARIANTS[0].target
    return {
        "target": round(variant.target, 3),
        "share": round((exact - found) / possible, 3),
        "share_absolute": round((whole - found) / (whole - variant.target), 3),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{'':32}{'s/step (quartiles)':>26}{'ratio (quartiles)':>26}{'cpu':>7}{'target':>8}"
        f"{'saved':>8}{'of 1.344':>10}{'peak MB':>9}"
    ]
    for name, row in rows.items():
        cells = [
            f"{one['median']:.3f} ({one['lower']:.3f}-{one['upper']:.3f})" if one else ""
            for one in (row["seconds"], row.get("ratio"))
        ]
        cpu = f"{row['cpu_ratio']['median']:.3f}" if "cpu_ratio" in row else ""
        saved = ["", "", ""]
        if "share" in row:
            saved = [f"{row['target']:.3f}", f"{row['share']:.0%}", f"{row['share_absolute']:.0%}"]
        lines.append(
            f"{name:32}{cells[0]:>26}{cells[1]:>26}{cpu:>7}{saved[0]:>8}{saved[1]:>8}{saved[2]:>10}"
            f"{row['peak']:9.0f}"
        )
    if {NONE, BUILT_IN, EXACT} <= rows.keys():
        base, host, own = (rows[n]["seconds"]["median"] for n in (NONE, BUILT_IN, EXACT))
        lines.append(
            f"The built-in adds {1000 * (host - base):.1f} ms a step and exact control "
            f"{1000 * (own - base):.1f} ms: {(own - base) / (host - base):.3f} of it."
        )
    return "\n".join(lines)


def speed(result: dict[str, Any]) -> str:
    result["rows"] = summary(result["timing"])
    return table(result["rows"])


# Memory and pictures.


def memory(result: dict[str, Any]) -> str:
    """Growth of the resident memory in MB a run: the slope of a line through all counted runs."""
    lines = []
    for one in result["memory"]:
        counted = one["resident"][WARM_UP:]
        middle = (len(counted) - 1) / 2
        spans = [index - middle for index in range(len(counted))]
        squares = sum(span * span for span in spans) or 1
        slope = sum(span * value for span, value in zip(spans, counted, strict=True)) / squares
        one["growth"] = round(slope, 4)
        lines.append(
            f"{one['variant']:32}{slope:+8.3f} MB a run over {len(counted)} runs behind "
            f"{WARM_UP}, {counted[0]:.0f} to {counted[-1]:.0f} MB"
        )
    return "\n".join(lines)


def quality(result: dict[str, Any]) -> str:
    """Median PSNR against exact pictures."""
    lines = []
    for one in result["quality"]:
        one["median"] = round(median(one["psnr"]), 2)
        drift = f", drift {median(one['drift']):.3f}" if one["drift"] else ""
        lines.append(
            f"{one['variant']:32}{one['median']:6.1f} dB ({min(one['psnr']):.1f} to "
            f"{max(one['psnr']):.1f}, {len(one['psnr'])} pictures){drift}"
        )
    return "\n".join(lines)


ACTS = {"speed": (speed, "timing"), "memory": (memory, "memory"), "quality": (quality, "quality")}


# The runs.


def commit(pack: Path) -> str:
    """The pack's commit, with a mark where files differ from it."""
    command = ["git", "-C", str(pack), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    return done.stdout.strip()


def measure(install: HostInstall, args: argparse.Namespace) -> None:
    """One host's figures, written anew with every round."""
    report, kind = ACTS[args.act]
    result: dict[str, Any] = {"host": install.version, "commit": commit(args.pack), kind: []}
    result |= {"small": args.small, "machine": {}, "missing": {}}
    suffix = "" if args.act == "speed" else f"_{args.act}"
    out = args.out / f"apply{suffix}-{install.version}.json"
    first = 0
    if args.append:
        result[kind] = json.loads(out.read_text(encoding="utf-8"))[kind]
        first = 1 + max(one["round"] for one in result[kind])
    for record in records(install, args):
        match record.pop("kind"):
            case "machine":
                result["machine"] = record
                if record["device"] != "cpu":
                    out = out.with_stem(f"{out.stem}-cuda")
            case "missing":
                result["missing"][record["variant"]] = record["reason"]
                print(f"left out: {record['variant']}: {record['reason']}", flush=True)
            case found if found == kind:
                result[kind].append(record)
                if kind == "timing":
                    record["round"] += first
                    print(
                        f"{record['round']} {record['variant']:32}{record['step']:9.3f} s",
                        flush=True,
                    )
                report(result)
                out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nComfyUI {install.version}, {result['commit']}, {result['machine']}")
    print(report(result), flush=True)


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """What is measured: which checkout of the pack, in which hosts."""
    parser.add_argument(
        "--host",
        type=Path,
        action="append",
        help="a ComfyUI checkout; default: COMFYUI_PATH, else ~/hosts/*",
    )
    parser.add_argument("--pack", type=Path, default=ROOT, help="a checkout of this pack")


def hosts_of(args: argparse.Namespace) -> list[HostInstall]:
    """The hosts of --host, else those that are found; ends the program where there are none."""
    hosts = [HostInstall(p.resolve(), python_of(p)) for p in args.host or ()] or find_hosts()
    if not hosts:
        raise SystemExit(NO_HOST)
    return hosts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_host_flags(parser)
    parser.add_argument("--advanced", type=Path, help="a checkout of ComfyUI-Advanced-ControlNet")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: what torch takes")
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument(
        "--repeat",
        type=int,
        default=0,
        help="samplings so many times as long; default 1, on a GPU 20 steps",
    )
    parser.add_argument(
        "--append", action="store_true", help="rounds beside those that were measured before"
    )
    parser.add_argument("--only", action="append", choices=[v.name for v in VARIANTS])
    parser.add_argument("--small", action="store_true", help="the embedded model instead")
    parser.add_argument(
        "--memory",
        dest="act",
        action="store_const",
        const="memory",
        default="speed",
        help="growth of resident memory, embedded model",
    )
    parser.add_argument(
        "--quality",
        dest="act",
        action="store_const",
        const="quality",
        help="PSNR against exact pictures, embedded model",
    )
    parser.add_argument("--runs", type=int, default=WARM_UP + 50, help="samplings for --memory")
    parser.add_argument("--seeds", type=int, default=16, help="pictures for --quality")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    args = parser.parse_args()
    hosts = hosts_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    for install in hosts:
        measure(install, args)


if __name__ == "__main__":
    main()
