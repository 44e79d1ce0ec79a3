"""The one error of the annotators."""

from __future__ import annotations


class AnnotatorError(ValueError):
    """A picture, a setting, a name or a file that can't be used; the message says what to do."""
