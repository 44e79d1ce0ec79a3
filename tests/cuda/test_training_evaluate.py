"""Evaluations on a GPU in the middle of a training."""

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import canny
from controlnet_pack.cldm_core import tiny
from controlnet_pack.cldm_core.pictures import read_picture
from controlnet_pack.cldm_core.training.evaluate import Evaluation, Evaluator, HeldOut
from controlnet_pack.cldm_core.training.undisturbed import undisturbed

pytestmark = pytest.mark.cuda


def evaluated(device: str, dtype: torch.dtype = torch.float32) -> Evaluation:
    for name in ("cv2", "diffusers", "transformers"):
        pytest.importorskip(name, reason=f"needs {name}")
    picture = read_picture(tiny.EXAMPLE)
    pipeline = tiny.load_pipeline(device=device, dtype=dtype)
    net = tiny.load_control("canny").to(device).requires_grad_(True).train()
    hints = [HeldOut("hut", tiny.EXAMPLE_PROMPT, canny(picture))]
    evaluation = Evaluator(pipeline, hints, canny, steps=10, guidance=3.0)(net, 100)
    assert net.training
    return evaluation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_samples_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    expected, found = evaluated("cpu"), evaluated("cuda", dtype)
    apart = np.abs(found.pictures[0].astype(float) - expected.pictures[0])
    assert apart.mean() < (1 if dtype == torch.float32 else 8)
    assert found.score == pytest.approx(expected.score, abs=0.1)
    assert found.zero_norms == pytest.approx(expected.zero_norms, rel=1e-5)


def test_random_numbers_of_the_gpu_go_on_as_if_nothing_had_been_drawn() -> None:
    torch.cuda.manual_seed(1)
    expected = torch.rand(2, device="cuda"), torch.rand(2, device="cuda")
    torch.cuda.manual_seed(1)
    first = torch.rand(2, device="cuda")
    with undisturbed([]):
        torch.rand(100, device="cuda")
    assert torch.equal(torch.stack([first, torch.rand(2, device="cuda")]), torch.stack(expected))
