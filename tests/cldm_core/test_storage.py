"""Every family in every number type that files are stored in: it loads and computes."""

import pytest
import torch

from controlnet_pack.cldm_core import TINY, ControlledUNet, UnionControlNet, load_control

from .samples import LOADED
from .seeded import seeded_module, seeded_state_dict

STORED = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("name", LOADED)
def test_every_family_loads_from_every_type(name: str, stored: torch.dtype) -> None:
    make = next(iter(LOADED[name].values()))
    shapes = {key: tuple(value.shape) for key, value in make().items()}
    state = {key: value.to(stored) for key, value in seeded_state_dict(shapes, 1).items()}
    base = seeded_module(ControlledUNet, TINY, 2).state_dict()
    with torch.inference_mode():
        net = load_control(state, base=base)
        kept = stored if stored.itemsize > 1 else torch.float32
        assert {value.dtype for value in net.state_dict().values()} == {kept}
        hint = torch.rand(1, 3, 64, 64)
        features = net.encode_hint({0: hint} if isinstance(net, UnionControlNet) else hint)
        inputs = (torch.zeros(1, 4, 8, 8, dtype=kept), features, torch.ones(1))
        found = net(*inputs, torch.zeros(1, 3, 128, dtype=kept))
    tensors = [*getattr(found, "output", ()), *getattr(found, "input", ())]
    assert all(torch.isfinite(item).all() for item in tensors if item is not None)
    assert tensors or found
