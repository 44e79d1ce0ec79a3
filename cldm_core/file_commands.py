"""The command line's verbs for files: look into them, convert them, and do surgery on them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint import CheckpointInfo, config_metadata, inspect_checkpoint, load_unet, save
from .checkpoint.convert import convert, provenance
from .checkpoint.dtypes import NAMED_TYPES
from .checkpoint.formats import CONTROL_PREFIX, UNET, UNET_PREFIX
from .checkpoint.inspect import UNKNOWN
from .checkpoint.read import Checkpoint, StateDict, read, read_header
from .errors import CldmError, UnsupportedCheckpoint
from .low_rank import extract_control_lora
from .surgery import add_control, apply_difference, difference, merge_nets, transfer
from .weights import base_weights, control_weights

WIDE_TYPES = {name: NAMED_TYPES[name] for name in ("fp32", "fp16", "bf16")}
HEADINGS = ("file", "kind", "base", "keys", "hint", "types", "pooling", "dtype", "numbers", "size")
LISTED = 10
"""How many keys of each sort `inspect` names."""

Commands = Any  # argparse names the type of its subparsers privately


def add_parsers(commands: Commands) -> None:
    """Adds the verbs to the parser's commands; each sets `run`, which may return an exit code."""
    _add_inspect(commands)
    _add_convert(commands)
    _add_add_control(commands)
    _add_transfer(commands)
    _add_difference(commands)
    _add_merge(commands)
    _add_extract(commands)


def _add_inspect(commands: Commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what checkpoint files hold",
        description="Says for each file what net it holds, for which base models, in what keys and "
        "number type, and which keys are missing or too many. The exit code is 2 where a file "
        "can't be read or isn't known.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.set_defaults(run=_inspect)


def _add_convert(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="a control net in other keys or another number type",
        description="Writes the control net of a file, of any kind, as safetensors: alone, without "
        "optimisers and the like, with its configuration in the metadata.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="any file with a control net")
    _add_out(parser)
    parser.add_argument(
        "--layout",
        choices=("cldm", "diffusers"),
        help="keys of the original or of diffusers (default: those of IN)",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(NAMED_TYPES),
        help="number type; in fp8 norms and biases are fp16 (default: that of IN)",
    )
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="store fp8 weights with a scale for each layer: far more exact, but only for this "
        "pack, as ComfyUI's own ControlNet loader knows no scales",
    )
    parser.add_argument(
        "--no-prune", action="store_true", help="refuse tensors outside the net, don't drop them"
    )
    parser.add_argument(
        "--base", type=Path, help="base model, where a file that builds upon one leaves much out"
    )
    parser.add_argument(
        "--pooling",
        choices=("yes", "no"),
        help="note that residuals are averaged over the picture, as for shuffle nets",
    )
    parser.add_argument("--hint", metavar="WORDS", help="note what the hint must be like")
    parser.set_defaults(run=_convert)


def _add_add_control(commands: Commands) -> None:
    parser = commands.add_parser(
        "add-control",
        help="a new ControlNet for a base model, to be trained",
        description="Copies a base model's encoder (SD 1.5, 2.1 or SDXL, single file or UNet of "
        "diffusers) and adds hint encoder and zero convolutions. The new net changes nothing until "
        "it is trained.",
    )
    parser.add_argument("base", type=Path, metavar="BASE")
    _add_out(parser)
    parser.add_argument(
        "--hint-channels", type=int, default=3, metavar="N", help="of the hint (%(default)s)"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="write the base too, as the original's tool does, not the ControlNet alone",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="for the new hint encoder (%(default)s)"
    )
    parser.set_defaults(run=_add_control)


def _add_transfer(commands: Commands) -> None:
    parser = commands.add_parser(
        "transfer",
        help="a ControlNet moved to another base model",
        description="Adds to the encoder what TARGET has beyond SOURCE, the base that the net was "
        "trained on. For ControlNets and unions, on bases of the same shapes.",
    )
    parser.add_argument("control", type=Path, metavar="CONTROL")
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET")
    _add_out(parser)
    parser.set_defaults(run=_transfer)


def _add_difference(commands: Commands) -> None:
    parser = commands.add_parser(
        "difference",
        help="difference files made and applied",
        description="Files of what a ControlNet has beyond its base model, as in "
        "sd-webui-controlnet.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    make = verbs.add_parser("make", help="what CONTROL has beyond BASE")
    make.add_argument("control", type=Path, metavar="CONTROL")
    _add_base(make, "the base model that it was trained on")
    _add_out(make)
    _add_wide_type(make)
    make.set_defaults(run=_make_difference)
    apply = verbs.add_parser("apply", help="the ControlNet that DIFFERENCE makes of BASE")
    apply.add_argument("difference", type=Path, metavar="DIFFERENCE")
    _add_base(apply, "any base model of the same family")
    _add_out(apply)
    _add_wide_type(apply)
    apply.set_defaults(run=_apply_difference)


def _add_merge(commands: Commands) -> None:
    parser = commands.add_parser(
        "merge",
        help="two nets mixed",
        description="(1 - ratio) x FIRST + ratio x SECOND, for nets of equal keys and shapes.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST")
    parser.add_argument("second", type=Path, metavar="SECOND")
    _add_out(parser)
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="0 is FIRST, 1 is SECOND (%(default)s)"
    )
    parser.set_defaults(run=_merge)


def _add_extract(commands: Commands) -> None:
    parser = commands.add_parser(
        "extract",
        help="a ControlNet as a small Control-LoRA",
        description="Keeps the largest part of what CONTROL has beyond BASE, in Stability AI's "
        "format, and says how much is lost.",
    )
    parser.add_argument("control", type=Path, metavar="CONTROL")
    _add_base(parser, "the base model that it was trained on")
    _add_out(parser)
    parser.add_argument(
        "--rank", type=int, default=128, help="larger is closer and bigger (%(default)s)"
    )
    _add_wide_type(parser)
    parser.set_defaults(run=_extract)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="a new .safetensors file")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")


def _add_base(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("base", type=Path, metavar="BASE", help=text)


def _add_wide_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=tuple(WIDE_TYPES), help="number type (default: that of the first file)"
    )


def _inspect(arguments: argparse.Namespace) -> int:
    rows: list[tuple[str, ...]] = [HEADINGS]
    below: list[str] = []
    failed: list[str] = []
    known = True
    for file in arguments.files:
        try:
            info = inspect_checkpoint(file)
        except (CldmError, OSError) as error:
            failed.append(f"{file}: {error}")
        else:
            known = known and info.format != UNKNOWN
            rows.append(_row(file, info))
            below += (f"{file}: {line}" for line in _remarks(info))
    if len(rows) > 1:
        sys.stdout.write(table(rows))
    sys.stdout.writelines(f"{line}\n" for line in below)
    sys.stderr.writelines(f"{line}\n" for line in failed)
    return 0 if known and not failed else 2


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines with the cells of each column under one another, the last two columns to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = len(widths) - 2
    lines = (
        "  ".join(
            cell.rjust(width) if index >= right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _row(file: Path, info: CheckpointInfo) -> tuple[str, ...]:
    return (
        str(file),
        info.kind,
        info.family,
        info.layout or "-",
        f"{info.hint_channels} channels" if info.hint_channels else "-",
        str(len(info.control_types)) if info.control_types else "-",
        info.pooling,
        info.dtype,
        f"{info.parameters / 1e6:.1f} M",
        f"{info.size / 1e6:.1f} MB" if info.size is not None else "-",
    )


def _remarks(info: CheckpointInfo) -> Iterable[str]:
    if info.control_types:
        yield f"control types {', '.join(info.control_types)}"
    for title in ("missing", "unexpected", "misshapen"):
        keys: tuple[str, ...] = getattr(info, title)
        if keys:
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            yield f"{len(keys)} {title}: {', '.join(keys[:LISTED])}{more}"
    if info.nearest:
        yield f"likest to {', '.join(info.nearest)}"
    if info.note:
        yield info.note


def _convert(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    info = convert(
        arguments.source,
        arguments.out,
        layout=arguments.layout,
        dtype=None if arguments.dtype is None else NAMED_TYPES[arguments.dtype],
        scaled=arguments.scaled,
        prune=not arguments.no_prune,
        base=None if arguments.base is None else base_weights(read_header(arguments.base)),
        global_average_pooling=None if arguments.pooling is None else arguments.pooling == "yes",
        hint=arguments.hint,
    )
    _tell(arguments.out, info)


def _add_control(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    base = read(arguments.base)
    if arguments.whole:
        _check_whole(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        net = add_control(load_unet(base), hint_channels=arguments.hint_channels)
    metadata = {**config_metadata(net.config), **provenance(base=arguments.base)}
    state = net.state_dict()
    if arguments.whole:
        prefixed = {CONTROL_PREFIX + key: value for key, value in state.items()}
        save({**base.tensors, **prefixed}, arguments.out, metadata)
        _tell(arguments.out, inspect_checkpoint(arguments.out))
    else:
        _tell(arguments.out, convert(Checkpoint(state, metadata), arguments.out))


def _check_whole(base: Checkpoint) -> None:
    if UNET_PREFIX + UNET not in base.tensors:
        raise UnsupportedCheckpoint(
            f"{base.name} is no single-file checkpoint (the key {UNET_PREFIX}{UNET} is missing), "
            f"so there is no whole to write: leave --whole out."
        )
    if any(key.startswith(CONTROL_PREFIX) for key in base.tensors):
        raise UnsupportedCheckpoint(
            f"{base.name} has a ControlNet already: take a base model, or leave --whole out."
        )


def _transfer(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    files = {name: getattr(arguments, name) for name in ("control", "source", "target")}
    _write(arguments, transfer(**files), files)


def _make_difference(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    files = {name: getattr(arguments, name) for name in ("control", "base")}
    _write(arguments, difference(**files, dtype=_wide_type(arguments)), files)


def _apply_difference(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    files = {name: getattr(arguments, name) for name in ("difference", "base")}
    _write(arguments, apply_difference(**files, dtype=_wide_type(arguments)), files)


def _merge(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    files = {name: getattr(arguments, name) for name in ("first", "second")}
    _write(arguments, merge_nets(**files, ratio=arguments.ratio), files)


def _extract(arguments: argparse.Namespace) -> None:
    from .commands import progress_bar

    check_target(arguments.out, force=arguments.force)
    files = {name: getattr(arguments, name) for name in ("control", "base")}
    with progress_bar("extracting") as progress:
        state, report = extract_control_lora(
            **files, rank=arguments.rank, dtype=_wide_type(arguments), progress=progress
        )
    _write(arguments, state, files)
    sys.stdout.write(f"{report}\n")


def _wide_type(arguments: argparse.Namespace) -> torch.dtype | None:
    return None if arguments.dtype is None else WIDE_TYPES[arguments.dtype]


def _write(arguments: argparse.Namespace, state: StateDict, files: dict[str, Path]) -> None:
    """The weights as a file that carries the first file's metadata and says what it is made of."""
    first = read_header(next(iter(files.values())))
    base = base_weights(read_header(files["base"])) if "base" in files else None
    config = control_weights(first).config(base)
    metadata = {**first.metadata, **config_metadata(config)}
    made = Checkpoint(state, metadata, arguments.out.name)
    _tell(arguments.out, convert(made, arguments.out, metadata=provenance(**files)))


def _tell(path: Path, info: CheckpointInfo) -> None:
    sys.stdout.write(f"{path}: {info}\n")


def check_target(path: Path, *, force: bool) -> None:
    """Raises CldmError where a file of weights can't or mustn't be written; leaves nothing behind.

    Without `force` a file that is there isn't replaced. Missing folders are no mistake: they are
    made when the file is written.
    """
    if path.suffix != ".safetensors":
        raise CldmError(
            f"Weights can't be written as {path.name!r}: let the name end in .safetensors."
        )
    try:
        if path.is_dir():
            raise CldmError(f"{path} is a folder: give the name of a file.")
        if path.exists() and not force:
            raise CldmError(f"{path} is there already: choose another name, or add --force.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CldmError(
            f"{path} can't be written ({error.strerror}): choose another folder or name."
        ) from error
