"""What tests of shards share: pictures to put in, what is in a shard, and what is refused."""

import re
import tarfile
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError
from controlnet_pack.annotators.datasets import annotate_dataset

from .pictures import write


def members(shard: Path) -> dict[str, bytes]:
    """The files of an archive, in their order."""
    with tarfile.open(shard) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}


def pixels(png: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(png, np.uint8), 1), cv2.COLOR_BGR2RGB)


def archive(path: Path, **files: bytes) -> Path:
    """A shard of files "KEY/ENDING"; in their order."""
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(data)
            tar.addfile(one, BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures in three formats, with captions of two kinds and facts."""
    folder = tmp_path / "pictures"
    for seed, name in enumerate(["a/1.png", "a/2.jpg", "a/b/3.webp", "4.JPEG", "5.png"]):
        write(folder / name, seed)
    (folder / "a" / "1.txt").write_text("eins", encoding="utf-8")
    (folder / "a" / "2.caption").write_text("zwei", encoding="utf-8")
    (folder / "a" / "2.json").write_text('{"score": 5}', encoding="utf-8")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "shards"


def refused(sentence: str, *arguments, **options) -> None:
    with pytest.raises(AnnotatorError, match=re.escape(sentence)):
        annotate_dataset(*arguments, **options)
