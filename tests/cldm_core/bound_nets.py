"""Nets that need a base model: their base, their ordinary twins, and what they make of a case."""

import pytest
import torch

from controlnet_pack.cldm_core.config import ControlNetConfig, UNetConfig
from controlnet_pack.cldm_core.controlnet import ControlNet
from controlnet_pack.cldm_core.unet import ControlledUNet

from .bound_cases import CASES, OWN, base_weights
from .seeded import seeded_state_dict, shapes_of

EACH_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def config_of(case):
    return ControlNetConfig.from_params(case.control_params)


def control_shapes(case):
    with torch.device("meta"):
        return shapes_of(ControlNet(config_of(case)))


def base_of(case):
    with torch.device("meta"):
        unet = ControlledUNet(UNetConfig.from_params(case.unet_params))
    return base_weights(shapes_of(unet))


def ordinary(case, weights):
    with torch.device("meta"):
        net = ControlNet(config_of(case))
    net.load_state_dict(weights, assign=True)
    return net.requires_grad_(False)


def residuals(net, case):
    x, hint, timesteps, context, y = case.inputs()
    return net(x, None, timesteps, context, y, hint=hint)


def numbers(net, case):
    found = residuals(net, case)
    return [*found.output, *found.middle]


def equal(first, second):
    """Whether two nets gave the same numbers."""
    return all(map(torch.equal, first, second))


def trained(case, strength=0.1):
    """A ControlNet's weights, which training moved away from the base's."""
    base = base_of(case)
    moved = seeded_state_dict(control_shapes(case), 8)
    return {
        key: value if key.startswith(OWN) else base[key] + strength * (value - base[key])
        for key, value in moved.items()
    }


def other_base(case):
    with torch.device("meta"):
        shapes = shapes_of(ControlledUNet(UNetConfig.from_params(case.unet_params)))
    return seeded_state_dict(shapes, 9)
