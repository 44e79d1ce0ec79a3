"""The errors of the annotators, and how they are told."""

from __future__ import annotations


class AnnotatorError(ValueError):
    """A picture, a setting, a name or a file that can't be used; the message says what to do."""


class Unavailable(AnnotatorError):
    """Weights or a package that can't be used: no picture can do anything about that."""


def sentence(error: Exception) -> str:
    """What an error says to a user."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def about(name: object, error: Exception) -> str:
    """The same, with the name of what it is about where it lacks that."""
    said = sentence(error)
    return said if str(name) in said else f"{name}: {said}"
