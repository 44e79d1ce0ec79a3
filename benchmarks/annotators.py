"""How long every annotator takes: this pack's, controlnet-aux's, and OpenCV's own calls.

Starts a process for each side, has them take turns with the same pictures and the same weights,
prints a table and writes results/annotators.json after every annotator; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from annotators_budget import NET, NET_ROUNDS, OTHER, OTHER_ROUNDS, Budget, Plan, plan
from annotators_cases import AUX, CASES, OPENCV, OURS, Case
from annotators_summary import rows_of, table
from annotators_worker import SLOW
from apply import ROOT, commit

RESULTS = ROOT / "benchmarks" / "results"
SIZES = (512, 1024)
SMALL = 256
"""Size of the picture that loading and equality are tried with."""
PARTS = ("left_out", "differs", "loading", "inside", "rows", "timing")
"""Of the results, those that annotators add to."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
SHORTEST = 0.05
"""Seconds that a sample takes at least, with what is around it."""
LITTLE = 8.0
"""Seconds for what has no network, even if the time is used up."""


class Refused(Exception):
    """A side can't do what it was told; the text says why."""


class Worker:
    """A process that does one task at a time."""

    def __init__(self, python: str, script: str, folder: Path, *args: str) -> None:
        command = [python, str(Path(__file__).with_name(script)), str(folder), *args]
        self.complaints = folder / f"{script}.txt"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints.open("w", encoding="utf-8"),
            env={**os.environ, **OFFLINE},
            text=True,
        )

    def __call__(self, do: str, **told: Any) -> Any:
        """The answer to a task; raises Refused with the reason where it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            said = self.complaints.read_text(encoding="utf-8")[-2000:]
            raise SystemExit(f"{said}\nended with {self.process.wait()} at {do} {told}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def end(self) -> None:
        """Lets the process come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Bench:
    """All sides, and what was found."""

    def __init__(self, args: argparse.Namespace, cases: list[Case], folder: Path) -> None:
        self.args = args
        self.budget = budget(args, cases)
        self.ours = Worker(sys.executable, "annotators_ours.py", folder, args.device)
        self.aux: Worker | None = None
        try:
            stand = commit(ROOT)
        except OSError:  # no git here
            stand = ""
        self.result: dict[str, Any] = {"commit": stand, "machine": self.ours("about")}
        self.result |= {part: {} for part in ("aux", *PARTS)}
        if args.aux_python:
            self.aux = Worker(args.aux_python, "annotators_aux.py", folder)
            self.result["aux"] = self.aux("about")
        for size in {SMALL, *args.size}:
            self.ours("draw", size=size, count=args.batch)

    def run(self, case: Case) -> None:
        """Everything about one annotator."""
        left_out = self.result["left_out"]
        for name in [name for name in left_out if case.name in name.split("|")]:
            del left_out[name]  # an earlier run's
        if case.lacks:
            left_out[case.name] = case.lacks
            return
        try:
            self.ours("load", case=case.name)
            if case.net:
                self.result["loading"][case.name] = self.ours("first", size=SMALL)
            beside = self.beside(case)
            for size in self.args.size:
                self.measure(case, size, beside)
        except Refused as error:
            left_out[case.name] = str(error)

    def beside(self, case: Case) -> dict[str, Worker]:
        """Who else makes this hint, ready to be asked."""
        found = {OPENCV: self.ours} if case.opencv and self.args.device == "cpu" else {}
        if case.aux and self.aux:
            try:
                self.aux("load", case=case.name)
                self.aux("hint", size=SMALL)
                if case.aux.equal:
                    differs = self.ours("hint", size=SMALL)
                    self.result["differs"][case.name] = differs
                found[AUX] = self.aux
            except Refused as error:
                self.result["left_out"][f"{AUX}|{case.name}"] = str(error)
        return found

    def measure(self, case: Case, size: int, beside: dict[str, Worker]) -> None:
        """All sides in turn, round by round, with one picture and with several."""
        started = time.monotonic()
        sides = {OURS: self.ours, **beside}
        ones = {by: self.warm(worker, by, size, 1) for by, worker in sides.items()}
        # controlnet-aux's batch is a loop, and is reckoned where it is long.
        loops = [by for by, one in ones.items() if not (by == AUX and one > SLOW)]
        single = sum(max(one, SHORTEST) for one in ones.values())
        looped = sum(max(ones[by], SHORTEST / self.args.batch) for by in loops)
        seconds = self.seconds(case, size, started) - (time.monotonic() - started)
        planned = plan(seconds, single, looped, self.args.batch, self.least(case))
        many = planned.several
        if self.args.batch > 1 and not planned.with_several:
            self.result["left_out"][f"{case.name}|{size}|{many}"] = (
                f"a round takes about {many * looped:.0f} s, and there were {max(seconds, 0):.0f}"
            )
            loops = []
        able = [(by, 1) for by in sides] + [(by, many) for by in loops if many > 1]
        for by, batch in able:
            # A slow network needs no second warm-up.
            if batch > 1 and (ones[by] <= SLOW or self.args.device == "cuda"):
                self.warm(sides[by], by, size, batch)
        self.take(f"{case.name}|{size}", sides, able, planned)
        if case.net and self.args.device == "cuda":
            for batch in {1, self.args.batch}:
                self.inside(case, size, batch)

    def take(
        self, place: str, sides: dict[str, Worker], able: list[tuple[str, int]], planned: Plan
    ) -> None:
        """The samples of all sides with so many pictures each, round by round."""
        size = int(place.rpartition("|")[2])
        samples: dict[str, list[list[float]]] = {}
        for number in range(planned.rounds):
            first = number % len(able)
            # In turn, and each round from another one on, so that disturbances fall on all of them.
            for by, batch in able[first:] + able[:first]:
                if batch > 1 and number >= planned.with_several:
                    continue
                found = sides[by]("time", by=by, size=size, batch=batch)
                taken = [float(f"{found[clock]:.5g}") for clock in ("seconds", "cpu")]
                samples.setdefault(f"{place}|{by}|{batch}", []).append(taken)
        timing: dict[str, Any] = self.result["timing"]
        others = {key: one for key, one in timing.items() if not key.startswith(f"{place}|")}
        self.result["timing"] = others | samples

    def seconds(self, case: Case, size: int, now: float) -> float:
        """What may be spent on an annotator at one size; without a network a little always."""
        if self.budget is None:
            return float(self.args.seconds)
        return max(self.budget.share((case.name, size), now), 0.0 if case.net else LITTLE)

    def least(self, case: Case) -> int:
        """How many rounds there are at least."""
        return self.args.rounds or (NET_ROUNDS if case.net else OTHER_ROUNDS)

    def warm(self, worker: Worker, by: str, size: int, batch: int) -> float:
        found = worker("warm", by=by, size=size, batch=batch)
        return float(found["seconds"])

    def inside(self, case: Case, size: int, batch: int) -> None:
        """Of one more run, what was spent in the network."""
        found = self.ours("inside", size=size, batch=batch)
        rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
        self.result["inside"][f"{case.name}|{size}|{batch}"] = rounded

    def end(self) -> None:
        for worker in (self.ours, self.aux):
            if worker:
                worker.end()


def budget(args: argparse.Namespace, cases: list[Case]) -> Budget | None:
    """The minutes that there are for all of these cases, in their order."""
    if args.minutes is None:
        return None
    weights = {
        (case.name, size): NET if case.net else OTHER
        for case in cases
        if not case.lacks
        for size in args.size
    }
    return Budget(time.monotonic() + 60 * args.minutes, weights)


def wanted(args: argparse.Namespace) -> list[Case]:
    """Networks first, and of those the larger ones: the others share what they leave."""
    # What has no network never runs on a GPU.
    able = [
        case
        for case in CASES
        if (case.name in args.only if args.only else args.device == "cpu" or case.net)
    ]
    return sorted(able, key=lambda case: (not case.net, -CASES.index(case)))


def written(result: dict[str, Any]) -> str:
    """JSON with one line for each entry of each part."""
    parts = []
    for name, value in result.items():
        text = json.dumps(value)
        if isinstance(value, dict) and len(text) > 100:
            lines = [f"  {json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aux-python", help="the Python of an environment with controlnet-aux")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--only", action="append", choices=[case.name for case in CASES], metavar="NAME"
    )
    parser.add_argument("--size", type=int, action="append", help="default: 512 and 1024")
    parser.add_argument("--batch", type=int, default=8, help="pictures at once; 1 for none")
    parser.add_argument(
        "--minutes",
        type=float,
        help="for everything, shared out: networks that take long are tried less often, with "
        "several pictures perhaps never",
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="for an annotator at one size, without --minutes"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"with one picture, at least; {NET_ROUNDS} for networks, {OTHER_ROUNDS} for others",
    )
    parser.add_argument("--add", action="store_true", help="to what an earlier run has written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    args = parser.parse_args()
    args.size = args.size or list(SIZES)
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out / ("annotators.json" if args.device == "cpu" else "annotators-cuda.json")
    with tempfile.TemporaryDirectory() as name:
        cases = wanted(args)
        bench = Bench(args, cases, Path(name))
        result = bench.result
        if args.add and out.exists():
            before = json.loads(out.read_text(encoding="utf-8"))
            for part in PARTS:
                result[part] |= before[part]
        for case in cases:
            bench.run(case)
            result["rows"] = rows_of(result["timing"])
            out.write_text(written(result), encoding="utf-8")
            print(table(result["rows"], case.name), flush=True)
        bench.end()
    print(f"\n{result['commit']}, {result['machine']}\n{result['aux']}")
    for part in PARTS[:4]:
        for key, value in result[part].items():
            print(f"{part}: {key}: {value}")


if __name__ == "__main__":
    main()
