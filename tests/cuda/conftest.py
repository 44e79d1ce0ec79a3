"""The CUDA tests run alone: torch, safetensors, einops, numpy and pytest are enough for them."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips with the reason where there is no GPU."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False")
        for item in items:
            if "tests/cuda" in item.path.as_posix():
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _exact_float32():
    """TF32 would make fp32 three digits coarser than the bounds below."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
