"""Surgery where net and base lie on different devices: the same as on the CPU alone."""

from typing import Any

import pytest
import torch

from controlnet_pack.cldm_core import ControlledUNet, ControlNet, ControlNetConfig
from controlnet_pack.cldm_core.low_rank import extract_control_lora
from controlnet_pack.cldm_core.surgery import apply_difference, difference, merge_nets, transfer

from .cases import UNET, weighted

pytestmark = pytest.mark.cuda

State = dict[str, torch.Tensor]
# Matrices of this size are decomposed by the randomised method.
RANK = 4


def states() -> tuple[State, State, State]:
    """A net, the base it is upon, and another base."""
    base, other = (weighted(ControlledUNet(UNET), seed).state_dict() for seed in (2, 3))
    net = weighted(ControlNet(ControlNetConfig(UNET)), 4).state_dict()
    near = {
        key: base[key] + 0.1 * (value - base[key]) if key in base else value
        for key, value in net.items()
    }
    return near, base, other


def on(state: State, device: str) -> State:
    return {key: value.to(device) for key, value in state.items()}


def results(net: State, base: State, other: State) -> dict[str, Any]:
    made = difference(net, base)
    return {
        "transfer": transfer(net, base, other),
        "difference": made,
        "apply": apply_difference(made, base),
        "merge": merge_nets(net, on(net, next(iter(base.values())).device.type), 0.3),
        "extract": extract_control_lora(net, base, RANK)[0],
    }


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_net_and_base_may_lie_on_different_devices(first: str, second: str) -> None:
    net, base, other = states()
    expected = results(net, base, other)
    found = results(on(net, first), on(base, second), on(other, second))
    for verb, state in found.items():
        assert state.keys() == expected[verb].keys()
        for key, value in state.items():
            if value.ndim and value.numel():
                assert value.device.type == first, (verb, key)
            if verb == "extract" and key.endswith((".up", ".down")):
                # Singular vectors may have either sign.
                continue
            torch.testing.assert_close(value.cpu(), expected[verb][key], rtol=1e-4, atol=1e-5)
