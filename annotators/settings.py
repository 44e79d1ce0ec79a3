"""The settings of an annotator: numbers, flags and choices, each with what it means."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

from .errors import AnnotatorError

Value: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Param:
    """A number, with both ends of its range allowed; a whole number where `default` is an int.

    step: what a field of a node goes up or down by; None is 1 for whole numbers and 0.01 for
    others. It does not limit which numbers are allowed.
    also: other names of the same, by which other packages know it.
    """

    default: int | float
    min: int | float
    max: int | float
    help: str
    step: float | None = None
    also: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are allowed."""
        return isinstance(self.default, int)

    def checked(self, name: str, value: object) -> int | float:
        """The value as an int or a float; raises AnnotatorError for others and out of the range."""
        kind = Integral if self.whole else Real
        if (
            isinstance(value, bool)
            or not isinstance(value, kind)
            or not math.isfinite(float(value))
        ):
            what = "a whole number" if self.whole else "a number"
            raise AnnotatorError(f"{name} is {value!r}, but it has to be {what}.")
        number = int(value) if self.whole else float(value)  # type: ignore[call-overload]
        if not self.min <= number <= self.max:
            raise AnnotatorError(
                f"{name} is {value}, but it has to be from {self.min} to {self.max}."
            )
        return number

    def read(self, name: str, text: str) -> int | float:
        """The value that a text means."""
        try:
            value: object = int(text) if self.whole else float(text)
        except ValueError:
            value = text
        return self.checked(name, value)


@dataclass(frozen=True)
class Flag:
    """Yes or no; `also` as of a Param."""

    default: bool
    help: str
    also: tuple[str, ...] = ()

    def checked(self, name: str, value: object) -> bool:
        """The value as a bool; raises AnnotatorError where it is none."""
        if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
            return bool(value)
        raise AnnotatorError(f"{name} is {value!r}, but it has to be True or False.")

    def read(self, name: str, text: str) -> bool:
        """The value that a text means: true, yes, on, enable or 1; false, no, off, disable or 0."""
        word = text.lower()
        if word in ("true", "yes", "on", "enable", "1"):
            return True
        if word in ("false", "no", "off", "disable", "0"):
            return False
        raise AnnotatorError(f"{name} is {text!r}, but it has to be yes or no.")


@dataclass(frozen=True)
class Choice:
    """One of several words; `also` as of a Param."""

    default: str
    choices: tuple[str, ...]
    help: str
    also: tuple[str, ...] = ()

    def checked(self, name: str, value: object) -> str:
        """The value; raises AnnotatorError where it is none of the choices."""
        if isinstance(value, str) and value in self.choices:
            return value
        raise AnnotatorError(
            f"{name} is {value!r}, but it has to be one of: {', '.join(self.choices)}."
        )

    def read(self, name: str, text: str) -> str:
        """The value that a text means."""
        return self.checked(name, text)


Setting: TypeAlias = Param | Flag | Choice


def complete(
    owner: str, settings: Mapping[str, Setting], given: Mapping[str, object]
) -> dict[str, Value]:
    """All settings of `owner`: the given ones, checked, and the defaults of the others."""
    names = _given(owner, settings, given)
    return {
        name: setting.checked(names[name], given[names[name]]) if name in names else setting.default
        for name, setting in settings.items()
    }


def from_text(owner: str, settings: Mapping[str, Setting], text: str) -> dict[str, Value]:
    """What a text such as "low_threshold: 50, high_threshold: 120" sets.

    Commas, semicolons and new lines part the settings; ":" or "=" parts name and value. Raises
    AnnotatorError with what can't be read.
    """
    texts: dict[str, str] = {}
    for part in text.replace(";", ",").replace("\n", ",").split(","):
        if not part.strip():
            continue
        name, mark, value = part.replace("=", ":").partition(":")
        if not mark:
            raise AnnotatorError(
                f"The settings say {part.strip()!r}, expected a name and a value: "
                f"{example(settings)}."
            )
        texts[name.strip()] = value.strip()
    names = _given(owner, settings, texts)
    return {name: settings[name].read(told, texts[told]) for name, told in names.items()}


def example(settings: Mapping[str, Setting]) -> str:
    """All settings with their defaults, in the form that `from_text` reads."""
    return ", ".join(f"{name}: {setting.default}" for name, setting in settings.items())


def _given(owner: str, settings: Mapping[str, Setting], told: Iterable[str]) -> dict[str, str]:
    """Which settings are told, each with the name that is told; refuses others, and one twice."""
    known = {other: name for name, one in settings.items() for other in (name, *one.also)}
    found: dict[str, str] = {}
    for other in told:
        if other not in known:
            raise AnnotatorError(
                f"{owner} has no parameter {other!r}{meant(other, known)}"
                f" It has: {', '.join(settings)}."
            )
        name = known[other]
        if name in found:
            raise AnnotatorError(
                f"{found[name]} and {other} are one parameter of {owner}: leave one of them out."
            )
        found[name] = other
    return found


def meant(name: str, names: Iterable[str]) -> str:
    """How a sentence about an unknown name ends: with the name that is most like it, if any is."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
