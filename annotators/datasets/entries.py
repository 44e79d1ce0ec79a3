"""A picture of a data set that a hint is to be made of, and what goes into a shard with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias, TypeVar

Content: TypeAlias = Path | bytes
"""What a file holds, or where it is."""

PICTURE_NAMES = ("target", "file_name", "image_file_name", "image")
CAPTION_NAMES = ("text", "caption", "prompt")
HINT_NAMES = (
    *("source", "hint", "hint_file_name"),
    *("conditioning_image", "conditioning_file_name", "conditioning_image_file_name"),
)
"""What a table may call a picture, its caption, and a hint that it has already."""


@dataclass(frozen=True)
class Entry:
    """A picture that a hint is to be made of, not read yet.

    key: what it is called in a shard; name: what it is called in messages.
    beside: what goes into the shard with it, by ending: "txt" is the caption, "json" facts.
    """

    key: str
    name: str
    ending: str
    picture: Content
    beside: Mapping[str, Content] = field(default_factory=dict)


Found = TypeVar("Found", Entry, Entry | str)
"""What a source gives: entries, or a sentence in the place of one that isn't there."""


def content(what: Content) -> bytes:
    """The bytes; raises OSError where the file can't be read."""
    return what.read_bytes() if isinstance(what, Path) else what


def entry_of(name: PurePath, picture: Content, beside: Mapping[str, Content]) -> Entry:
    """An entry with a key that every reader of webdataset parts from the endings alike.

    They part at the first dot, and leave out folders such as __MACOSX__.
    """
    folders = [part for part in name.parts[:-1] if part not in ("..", name.anchor)]
    key = "/".join([*folders, name.stem]).replace(".", "_")
    key = key.lstrip("_") if key.startswith("__") else key
    ending = name.suffix.lower().removeprefix(".")
    return Entry(key or "_", name.as_posix(), usual(ending), picture, beside)


def usual(ending: str) -> str:
    """The ending that a shard has for the same format."""
    return "jpg" if ending in ("jpeg", "jpe") else ending


def unique(entries: Iterator[Found]) -> Iterator[Found]:
    """No two with one key, as a.jpg and a.png would have: the later one gets a number."""
    taken: set[str] = set()
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        key, number = entry.key, 1
        while key in taken:
            number += 1
            key = f"{entry.key}_{number}"
        taken.add(key)
        yield replace(entry, key=key)


def beside_of(row: Mapping[str, Any]) -> dict[str, Content]:
    """What a row of a table says besides the picture: its caption, and facts, if it has any."""
    beside: dict[str, Content] = {}
    if caption := next((row[name] for name in CAPTION_NAMES if _is_text(row.get(name))), None):
        # JSON may hold halves of characters, which no file in UTF-8 can.
        beside["txt"] = caption.encode("utf-8", "replace")
    known = {*PICTURE_NAMES, *CAPTION_NAMES, *HINT_NAMES}
    if facts := {key: value for key, value in row.items() if key not in known and _is_fact(value)}:
        beside["json"] = json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")
    return beside


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_fact(value: object) -> bool:
    """Whether JSON can hold it, which it can't another picture."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
