"""Settings as fields of a frozen dataclass: checked, read from YAML, offered as flags."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from ..errors import CldmError

C = TypeVar("C")
Value = str | int | float | bool | None
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Option:
    """One setting: its type, whether it may be left empty, and which values it takes.

    least and most are allowed themselves, above is not. A pinned one can't change when a run goes
    on from a checkpoint.
    """

    name: str
    kind: type
    optional: bool
    default: Value
    group: str
    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    pinned: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        nothing = " (or nothing)" if self.optional else ""
        if self.choices:
            return f"one of {', '.join(self.choices)}{nothing}"
        text = _KINDS[self.kind]
        limits = (("above", self.above), ("from", self.least), ("up to", self.most))
        bounds = " ".join(f"{word} {limit}" for word, limit in limits if limit is not None)
        return f"{text} {bounds}".rstrip() + nothing

    def read(self, value: Any) -> Value:
        """The value in the option's own type; raises CldmError where it isn't one.

        Whole numbers are numbers, and so is a text such as 1e-5, which YAML takes for a text.
        """
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = self._number(value)
        if type(value) is not self.kind or not self._within(value):
            raise self._refusal(value)
        return cast("Value", value)

    def _number(self, value: int | str) -> float:
        try:
            return float(value)
        except (OverflowError, ValueError):
            raise self._refusal(value) from None

    def _within(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind not in (int, float):
            return True
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
        )

    def _refusal(self, value: Any) -> CldmError:
        return CldmError(f"{self.name} is {value!r}, expected {self.expected}.")


def option(
    default: Value, group: str, text: str, *, choices: Sequence[str] = (), **limits: Any
) -> Any:
    """A dataclass's field that is a setting; limits are those of Option."""
    return dataclasses.field(
        default=default,
        metadata={"group": group, "help": text, "choices": tuple(choices), **limits},
    )


def options_of(settings: type[Any]) -> tuple[Option, ...]:
    """The settings of a dataclass, in its order."""
    hints = get_type_hints(settings)
    found = []
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        (kind,) = (one for one in kinds if one is not type(None))
        default: Value = field.default  # type: ignore[assignment]
        found.append(Option(field.name, kind, len(kinds) > 1, default, **field.metadata))
    return tuple(found)


def checked(settings: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """The settings made of values by name; raises CldmError for a name or value that is wrong."""
    options = {one.name: one for one in options_of(settings)}
    for name in values:
        if name not in options:
            near = difflib.get_close_matches(str(name), options, 1)
            advice = f"did you mean {near[0]}?" if near else "docs/training.md has all of them."
            raise CldmError(f"{where}There is no option {name!r}: {advice}")
    try:
        return settings(**{name: options[name].read(value) for name, value in values.items()})
    except CldmError as error:
        raise CldmError(f"{where}{error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values of a YAML file; raises CldmError where it holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CldmError(f"There is no file {path}: check the name and the folder.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CldmError(f"{path} can't be read as text: {error}.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The names and values of a YAML text; raises CldmError, with `name`, for anything else."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise CldmError(f"{name} is no YAML that can be read: {told}.") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CldmError(f"{name} holds {type(found).__name__}, expected lines such as ema: 0.9999.")
    return found


def write_yaml(settings: Any) -> str:
    """All settings as YAML, under the names of their groups."""
    import yaml

    lines, group = [], ""
    for one in options_of(type(settings)):
        if one.group != group:
            group = one.group
            lines += ["", f"# {group}"]
        lines.append(yaml.safe_dump({one.name: getattr(settings, one.name)}).rstrip())
    return "\n".join(lines).lstrip() + "\n"


def add_flags(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """Every setting as a flag; one that isn't given is absent from the parsed arguments."""
    groups: dict[str, Any] = {}
    for one in options_of(settings):
        if one.group not in groups:
            groups[one.group] = parser.add_argument_group(one.group)
        told = "nothing" if one.default is None else one.default
        text = f"{one.help} ({str(told).lower() if one.kind is bool else told})".replace("%", "%%")
        add = groups[one.group].add_argument
        if one.kind is bool:
            action = argparse.BooleanOptionalAction
            add(one.flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            shown = f"{{{','.join(one.choices)}}}" if one.choices else one.kind.__name__.upper()
            add(one.flag, default=argparse.SUPPRESS, help=text, metavar=shown)


def given_flags(arguments: argparse.Namespace, settings: type[Any]) -> dict[str, Any]:
    """The settings that were given as flags, by name, each in its type; raises CldmError."""
    found: dict[str, Any] = {}
    for one in options_of(settings):
        if hasattr(arguments, one.name):
            found[one.name] = _from_text(one, getattr(arguments, one.name))
    return found


def _from_text(one: Option, text: Any) -> Value:
    if text == "" and one.optional:
        return None
    if one.kind is int and isinstance(text, str):
        try:
            return one.read(int(text))
        except ValueError as error:
            raise CldmError(f"{one.flag}: {one.name} is {text!r}, expected {one.expected}.") from (
                error
            )
    return one.read(text)
