"""What tests of neural annotators share: seeded weights in the place of downloaded ones."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from controlnet_pack.annotators import Weights, keeper, weights

Give = Callable[[Weights, Mapping], Path]


@contextmanager
def giving(folder: Path) -> Iterator[Give]:
    """Inside, give(WEIGHTS, tensors) writes a file, which is then used for those weights."""
    import torch

    with ExitStack() as stack:

        def write(record: Weights, tensors: Mapping) -> Path:
            path = folder / "given" / record.repository / record.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file({name: value.contiguous() for name, value in tensors.items()}, path)
            else:
                torch.save(dict(tensors), path)
            stack.enter_context(weights.given(record, path))
            return path

        yield write


@pytest.fixture
def give(tmp_path) -> Iterator[Give]:
    """See giving."""
    with giving(tmp_path) as write:
        yield write


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """No folder but one that is empty, no hub, nothing kept; gives the folder."""
    folder = tmp_path / "annotators"
    monkeypatch.setattr(weights, "folders", lambda: [folder])
    monkeypatch.setattr(weights, "_in_hub_cache", lambda _: [])
    before = keeper.use(keeper.Kept())
    yield folder
    keeper.use(before)
