"""The command line's verbs for files: convert them, and do surgery on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import inspect_command
from .checkpoint import CheckpointInfo, config_metadata, inspect_checkpoint, load_unet, save
from .checkpoint.convert import POOLED_NOTE, convert, provenance
from .checkpoint.dtypes import NAMED_TYPES
from .checkpoint.formats import CONTROL_PREFIX, UNET, UNET_PREFIX
from .checkpoint.load import unet_part
from .checkpoint.quantise import retyped
from .checkpoint.read import Checkpoint, StateDict, read, read_header
from .checkpoint.write import FOREIGN_HINT_KEY, HINT_KEY, stored_pooling
from .eight_bits import is_8_bit
from .errors import UnsupportedCheckpoint
from .file_checks import check_roles, check_target
from .low_rank import extract_control_lora
from .surgery import add_control, apply_difference, difference, merged, transfer
from .weights import base_weights, control_weights

LICENCE = ("licence", "license", "copyright")
"""Parts of the keys under which a file's metadata says what may be done with it."""

Commands = Any  # argparse names the type of its subparsers privately


def add_parsers(commands: Commands) -> None:
    """Adds the verbs to the parser's commands; each sets `run`, which may return an exit code."""
    inspect_command.add_parser(commands)
    _add_convert(commands)
    _add_add_control(commands)
    _add_transfer(commands)
    _add_difference(commands)
    _add_merge(commands)
    _add_extract(commands)


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
        help="number type; in fp8 what loses too much stays fp16 (default: that of IN)",
    )
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="store fp8 weights with a scale for each layer: far more exact, but only for this "
        "pack, as ComfyUI's own ControlNet loader knows no scales",
    )
    parser.add_argument(
        "--no-prune",
        action="store_true",
        help="refuse tensors that lie among the net's and aren't its own, don't drop them",
    )
    parser.add_argument(
        "--base", type=Path, help="base model, where a file that builds upon one leaves much out"
    )
    parser.add_argument(
        "--pooling",
        choices=("yes", "no"),
        help="note that residuals are averaged over the picture, as for shuffle nets, or are not",
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
    _add_type(parser, "BASE")
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
    _add_type(parser, "CONTROL")
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
    _add_type(make, "CONTROL")
    make.set_defaults(run=_make_difference)
    apply = verbs.add_parser("apply", help="the ControlNet that DIFFERENCE makes of BASE")
    apply.add_argument("difference", type=Path, metavar="DIFFERENCE")
    _add_base(apply, "any base model of the same family")
    _add_out(apply)
    _add_type(apply, "DIFFERENCE")
    apply.set_defaults(run=_apply_difference)


def _add_merge(commands: Commands) -> None:
    parser = commands.add_parser(
        "merge",
        help="two nets mixed",
        description="(1 - ratio) x FIRST + ratio x SECOND, for nets of one kind "
        "and family of base models.",
    )
    parser.add_argument("first", type=Path, metavar="FIRST")
    parser.add_argument("second", type=Path, metavar="SECOND")
    _add_out(parser)
    parser.add_argument(
        "--ratio", type=float, default=0.5, help="0 is FIRST, 1 is SECOND (%(default)s)"
    )
    parser.add_argument(
        "--pooling",
        choices=("yes", "no"),
        help="whether the mixture's residuals are averaged over the picture, where FIRST and "
        "SECOND differ in it",
    )
    _add_type(parser, "FIRST")
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
    _add_type(parser, "CONTROL")
    parser.set_defaults(run=_extract)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="a new .safetensors file")
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")


def _add_base(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("base", type=Path, metavar="BASE", help=text)


def _add_type(parser: argparse.ArgumentParser, first: str) -> None:
    parser.add_argument(
        "--dtype",
        choices=tuple(NAMED_TYPES),
        help=f"number type; in fp8 what loses too much stays fp16 (default: that of {first}, or "
        f"fp16 where {first} has 8 bits)",
    )


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
        global_average_pooling=_pooling(arguments),
        hint=arguments.hint,
    )
    _tell(arguments.out, info)


def _add_control(arguments: argparse.Namespace) -> None:
    check_target(arguments.out, force=arguments.force)
    check_roles({"base": arguments.base})
    base = read(arguments.base)
    dtype = NAMED_TYPES.get(arguments.dtype)
    if dtype is None and any(is_8_bit(value.dtype) for value in unet_part(base).values()):
        dtype = torch.float16
    if arguments.whole:
        _check_whole(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        net = add_control(load_unet(base), hint_channels=arguments.hint_channels)
    licence = {
        key: text
        for key, text in base.metadata.items()
        if any(part in key.lower() for part in LICENCE)
    }
    metadata = {**licence, **config_metadata(net.config), **provenance(base=arguments.base)}
    state = net.state_dict()
    if arguments.whole:
        state = state if dtype is None else retyped(state, dtype)
        prefixed = {CONTROL_PREFIX + key: value for key, value in state.items()}
        save({**base.tensors, **prefixed}, arguments.out, metadata)
        _tell(arguments.out, inspect_checkpoint(arguments.out))
    else:
        _tell(arguments.out, convert(Checkpoint(state, metadata), arguments.out, dtype=dtype))


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
    files = _files(arguments, "control", "source", "target")
    _write(arguments, transfer(**files, dtype=_wide_type(arguments)), files)


def _make_difference(arguments: argparse.Namespace) -> None:
    files = _files(arguments, "control", "base")
    _write(arguments, difference(**files, dtype=_wide_type(arguments)), files)


def _apply_difference(arguments: argparse.Namespace) -> None:
    files = _files(arguments, "difference", "base")
    made = apply_difference(files["difference"], files["base"], dtype=_wide_type(arguments))
    _write(arguments, made, files)


def _merge(arguments: argparse.Namespace) -> None:
    files = _files(arguments, "first", "second")
    mixture = merged(
        **files,
        ratio=arguments.ratio,
        global_average_pooling=_pooling(arguments),
        dtype=_wide_type(arguments),
    )
    _write(arguments, mixture.state, files, mixture.metadata)
    if mixture.note:
        sys.stdout.write(f"{mixture.note}\n")


def _extract(arguments: argparse.Namespace) -> None:
    from .commands import progress_bar

    files = _files(arguments, "control", "base")
    with progress_bar("extracting") as progress:
        state, report = extract_control_lora(
            files["control"],
            files["base"],
            arguments.rank,
            dtype=_wide_type(arguments),
            progress=progress,
        )
    _write(arguments, state, files)
    sys.stdout.write(f"{report}\n")


def _files(arguments: argparse.Namespace, *names: str) -> dict[str, Path]:
    """The files by what they are for; each is of the right kind, and there is room for a result."""
    check_target(arguments.out, force=arguments.force)
    files: dict[str, Path] = {name: getattr(arguments, name) for name in names}
    check_roles(files)
    return files


def _pooling(arguments: argparse.Namespace) -> bool | None:
    return None if arguments.pooling is None else arguments.pooling == "yes"


def _wide_type(arguments: argparse.Namespace) -> torch.dtype | None:
    """What results are computed in: types of 8 bits are for the file alone."""
    dtype = NAMED_TYPES.get(arguments.dtype)
    return torch.float32 if is_8_bit(dtype) else dtype


def _write(
    arguments: argparse.Namespace,
    state: StateDict,
    files: dict[str, Path],
    texts: Mapping[str, str] | None = None,
) -> None:
    """The weights as a file that carries the first file's metadata and says what it is made of.

    texts: metadata with the configuration and what is noted of the hint, else the first file's.
    """
    first = read_header(next(iter(files.values())))
    kept, note = dict(first.metadata), ""
    if texts is None:
        base = base_weights(read_header(files["base"])) if "base" in files else None
        net = control_weights(first)
        texts = config_metadata(net.config(base), pooling_known=net.pooling is not None)
        note = POOLED_NOTE if net.pooling and stored_pooling(first) is None else ""
    else:
        kept = {k: v for k, v in kept.items() if k not in (HINT_KEY, FOREIGN_HINT_KEY)}
    made = Checkpoint(state, {**kept, **texts}, arguments.out.name)
    dtype = NAMED_TYPES.get(arguments.dtype)
    narrow = dtype if is_8_bit(dtype) else None
    info = convert(made, arguments.out, dtype=narrow, metadata=provenance(**files))
    _tell(arguments.out, replace(info, note=" ".join(filter(None, (note, info.note)))))


def _tell(path: Path, info: CheckpointInfo) -> None:
    sys.stdout.write(f"{path}: {info}\n")
    if info.note:
        sys.stdout.write(f"{info.note}\n")
