"""The data of the training nodes: pairs opened, looked through, and made of pictures."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ...cldm_core import CldmError
from ...cldm_core.training.circles import CirclePairs
from ...cldm_core.training.config import named_columns
from ...cldm_core.training.dataset_writer import DatasetWriter
from ...cldm_core.training.doctor import check, looked_at
from ...cldm_core.training.pairs import FilePicture, Pair, held_picture
from ...cldm_core.training.plan import Maker, cut_pair
from ...cldm_core.training.sources import Source, expanded, open_source, shard_files
from ..images import to_image, to_pictures
from .interrupts import Interrupts, Uninterrupted, checked_progress

RUNS = "controlnet_training"
"""Where runs are, below the host's output folder."""
SHARDS = f"{RUNS}/.cache"
"""Where it is kept what the headers of shards said: reading them takes minutes."""
LOOKED_AT = 2000
"""Pairs that the report of a data set is made of."""
SHOWN = 4


def draw_circles(count: int, side: int) -> Source:
    """Drawn pairs to rehearse with."""
    return CirclePairs(count, side)


def open_pairs(data: str, conditioning: str = "", columns: str = "") -> Source:
    """The data set of a name, and where its hints are and what its columns are called.

    Names are whole paths, or places in the host's input or output folder; the empty ones are found
    by themselves. Raises CldmError where there is nothing of such a name.
    """
    hints = conditioning.strip()
    return open_source(
        _place(data, "data set"),
        conditioning=_place(hints, "folder of hints") if hints else None,
        columns=named_columns(columns) or None,
        cache=Path(folder_paths.get_output_directory()) / SHARDS,
    )


def _place(name: str, what: str) -> Path:
    given = Path(name.strip()).expanduser()
    if given.is_absolute():
        return given
    roots = (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    found = [place for root in roots if _is_there(place := Path(root) / given)]
    if not found:
        raise CldmError(
            f"There is no {what} {name!r}: give its whole path, or its place in ComfyUI's input or "
            f"output folder."
        )
    return found[0]


def _is_there(place: Path) -> bool:
    # Shards may be named as pairs-{0000..0099}.tar.
    return place.exists() or any(one.exists() for one in expanded(place))


def data_stamp(data: str, conditioning: str = "", columns: str = "") -> str:
    """A text that is another one once pairs have changed that the report looks at.

    The host asks for it before each run of a graph: of shards no header is read. Raises CldmError
    as open_pairs does.
    """
    shards = shard_files(_place(data, "data set"))
    if shards:
        parts = [FilePicture(shard).stamp() for shard in shards]
    else:
        source = open_pairs(data, conditioning, columns)
        pairs = (_pair_stamp(source, index) for index in looked_at(source, LOOKED_AT))
        parts = [source.stamp(), *pairs, *source.strays()]
    text = "\n".join(parts)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _pair_stamp(source: Source, index: int) -> str:
    try:
        pair = source[index]
        files = [one.stamp() for one in (pair.target, pair.hint) if one is not None]
    except CldmError as error:
        return str(error)
    return "|".join((pair.name, pair.prompt, *files))


def look_through(source: Source, annotator: Maker | None, side: int) -> tuple[str, Tensor, Tensor]:
    """The report on the pairs, and targets and hints of the first ones as they are trained on.

    annotator: makes the hints where the pairs have none. Raises CldmError, with the report, where
    none of the first pairs can be used.
    """
    interrupts = Interrupts()
    maker = None if annotator is None else Uninterrupted(annotator, interrupts)
    told = checked_progress(interrupts)
    report = check(source, resolution=side, hints=maker, limit=LOOKED_AT, progress=told).summary()
    cut = _first_pairs(source, side, maker)
    if not cut:
        raise CldmError(report)
    pictures, hints = map(to_image, zip(*cut, strict=True))
    return report, pictures, hints


def _first_pairs(source: Source, side: int, maker: Maker | None) -> list[tuple[Any, Any]]:
    """Targets and hints of the first pairs, without those that can't be used."""
    found = []
    for index in range(min(SHOWN, len(source))):
        # What is wrong with them is in the report.
        with suppress(CldmError):
            found.append(cut_pair(source[index], side, maker))
    return found


def output_folder(place: str, name: str) -> Path:
    """A data set's folder, below a place in the host's output; raises CldmError for a bad name."""
    root = (Path(folder_paths.get_output_directory()) / place).resolve()
    folder = (root / name.strip()).resolve()
    if folder == root or not folder.is_relative_to(root):
        raise CldmError(f"The data set can't be called {name!r}: give a name, as for a folder.")
    return folder


def write_pairs(images: Tensor, hints: Tensor, prompts: str, folder: Path) -> tuple[int, Source]:
    """Adds the graph's pictures to the data set in a folder; gives their number, and all pairs.

    Raises CldmError where the numbers of pictures, hints and lines don't fit.
    """
    pairs = _paired(images, hints, prompts)
    writer = DatasetWriter(folder)
    for pair in pairs:
        writer.add(pair.read_target(), pair.read_hint(), pair.prompt)
    return len(pairs), open_source(folder)


def _paired(images: Tensor, hints: Tensor, prompts: str) -> list[Pair]:
    targets, sources = to_pictures(images), to_pictures(hints)
    lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
    for count, what in ((len(sources), "hints"), (len(lines), "lines of prompts")):
        if count not in (1, len(targets)):
            raise CldmError(
                f"There are {len(targets)} pictures and {count} {what}: give one for each, or one "
                f"for all."
            )
    return [
        Pair(
            f"image-{index:05d}",
            lines[index % len(lines)],
            held_picture(target, f"image {index}"),
            held_picture(sources[index % len(sources)], f"hint {index}"),
        )
        for index, target in enumerate(targets)
    ]
