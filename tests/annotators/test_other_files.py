"""A file of another network under the right name: no picture can help that, so it ends a run."""

import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, Annotator, annotate
from controlnet_pack.annotators.errors import Unavailable

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("transformers", reason="needs transformers")


def is_pytorch_s(record: Annotator) -> bool:
    endings = (".pth", ".pt", ".bin", ".safetensors")
    return bool(record.weights) and all(one.name.endswith(endings) for one in record.weights)


@pytest.mark.parametrize("name", [one.name for one in ANNOTATORS.values() if is_pytorch_s(one)])
def test_another_network_s_file(name, give, no_network):
    for record in ANNOTATORS[name].weights:
        give(record, {"some.weight": torch.ones(1)})
    with pytest.raises(Unavailable, match=r"The file of weights (lacks|has an unknown) "):
        annotate(name, np.full((16, 16, 3), 128, np.uint8), resolution=0, device="cpu")
