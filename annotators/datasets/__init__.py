"""Data sets with hints: pictures and captions in, webdataset shards with hints out.

    >>> from annotators.datasets import annotate_dataset
    >>> annotate_dataset("canny", Path("pictures"), Path("shards"), low_threshold=50)

A sample is KEY.jpg (or .png, .webp, ...: the picture's own bytes), KEY.hint.png (.hint.npy where
the hint is made of floats), KEY.txt with the caption, and KEY.json with more, where there was more.
"""

from __future__ import annotations

from .batch import Result, annotate_dataset
from .sources import shards_of

__all__ = ["Result", "annotate_dataset", "shards_of"]
