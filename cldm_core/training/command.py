"""The verb `train` of the command line."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CldmError
from ..whole_files import whole_file
from .config import TrainConfig
from .options import add_flags, given_flags, write_yaml

CONFIG = "config.yaml"
CHECKED = 5000
"""Pairs that --check looks at where nothing else is said: some minutes, however many there are."""


def add_parser(commands: Any) -> None:
    """Adds the verb to the parser's commands."""
    parser = commands.add_parser(
        "train",
        help="train a ControlNet, a Control-LoRA or an LLLite",
        description="Trains a control net from pairs of a picture and a hint. Settings come from a "
        "YAML file, from flags of the same names, or from both; flags count more. On several GPUs: "
        "torchrun --nproc-per-node GPUS -m cldm_core train CONFIG.",
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a YAML file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last whole checkpoint in the folder out, where there is one; without "
        "CONFIG with the settings of OUT/config.yaml",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    modes.add_argument(
        "--check", action="store_true", help="look through the data, and train nothing"
    )
    parser.add_argument(
        "--check-pairs",
        type=int,
        default=CHECKED,
        metavar="COUNT",
        help="how many pairs --check looks at, taken at random; 0 looks at all (%(default)s)",
    )
    add_flags(parser, TrainConfig)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """What the verb does; gives the exit code."""
    config = config_of(arguments)
    if arguments.dry_run:
        from .dry_run import dry_run

        _write_lines(dry_run(config))
        return 0
    if arguments.check:
        return check(config, arguments.check_pairs)
    train(config, resume=arguments.resume)
    return 0


def config_of(arguments: argparse.Namespace) -> TrainConfig:
    """The settings of the file and the flags; raises CldmError where there are none.

    The file of a run that goes on is its own, where no other is given.
    """
    flags = given_flags(arguments, TrainConfig)
    path: Path | None = arguments.config
    own = Path(flags.get("out", TrainConfig.out)) / CONFIG
    if path is None and arguments.resume and own.is_file():
        path = own
    if path is not None:
        return TrainConfig.from_yaml(path, flags)
    if not flags:
        raise CldmError(
            "Nothing says what to train: give a CONFIG.yaml, or options such as --data circles."
        )
    return TrainConfig.of(flags)


def check(config: TrainConfig, pairs: int) -> int:
    """Says what is wrong with so many pairs of the data, 0: with all; 1 where training can't begin.

    Raises CldmError for a number that is none, and where there is no data.
    """
    from ..commands import progress_bar
    from .checking import check_data

    if pairs < 0:
        raise CldmError(f"--check-pairs is {pairs}, expected a whole number from 0.")
    with progress_bar("looking") as bar:
        report = check_data(config, bar, limit=pairs or None)
    _write_lines([report.summary()])
    if report.checked < report.pairs:
        _write_lines(["--check-pairs 0 looks at all of them."])
    return 0 if report.ok else 1


def train(config: TrainConfig, *, resume: bool = False) -> None:
    """Trains, and says on standard output what came of it; SIGINT and SIGTERM save and stop."""
    from ..commands import progress_bar
    from .loop import fit
    from .plan import make_plan
    from .reports import Reports
    from .session import part, processes, require_room
    from .signals import StopOnSignals

    first = processes()[0] == 0
    say: Callable[[str], None] = _say if first else lambda _: None
    out = Path(config.out)
    _check_out(out)
    require_room(out, config, resume=resume)
    plan = make_plan(config)
    reports = Reports(
        out,
        plan.evaluator.held_out if plan.evaluator else (),
        tensorboard=config.tensorboard and first,
    )
    with StopOnSignals() as stop, progress_bar("training") if first else nullcontext() as bar:
        fitted = fit(
            plan.trainable,
            plan.batches,
            config,
            out=out,
            evaluator=plan.evaluator,
            history=reports,
            progress=bar,
            stop=stop,
            resume=resume,
            begun=partial(_note, config, out / CONFIG) if first else None,
            shown=reports.show,
            say=say,
        )
    part()
    if fitted.stopped:
        say(f"Stopped after step {fitted.step} of {config.steps}; --resume goes on from there.")
    if fitted.best is not None:
        say(f"The net that scored best: {fitted.best}")
    say(f"The net after step {fitted.step}: {fitted.net}")
    if first:
        reports.plot()
    reports.close()


def _say(sentence: str) -> None:
    """Writes a line of its own, below which a bar is drawn anew."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        _write_lines([sentence])


def _write_lines(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _check_out(out: Path) -> None:
    """Makes the folder; raises CldmError where nothing can be written into it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise CldmError(
            f"Nothing can be written into the folder {out} ({error.strerror}): choose another one "
            f"(out)."
        ) from error


def _note(config: TrainConfig, path: Path) -> None:
    """Writes the settings of a run; a file that says the same already keeps its comments."""
    with suppress(CldmError):
        if path.is_file() and TrainConfig.from_yaml(path) == config:
            return
    with whole_file(path) as part:
        part.write_text(write_yaml(config), encoding="utf-8")
