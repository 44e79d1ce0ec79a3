"""Changing weights as a whole: control added to a base model."""

from __future__ import annotations

from typing import Any

from torch import nn

from .attention import Attention, sdpa
from .config import ControlNetConfig
from .controlnet import ControlNet
from .unet import ControlledUNet


def add_control(
    unet: ControlledUNet, *, hint_channels: int = 3, ops: Any = nn, attention: Attention = sdpa
) -> ControlNet:
    """A new ControlNet for `unet`, after tool_add_control.py of the original.

    Its encoder is copied and its zero convolutions are zero, so it changes nothing until it is
    trained. The weights have the UNet's type and are on its device.
    """
    parameter = next(unet.parameters())
    net = ControlNet(ControlNetConfig(unet.config, hint_channels), ops, attention=attention)
    net.to(parameter.device, parameter.dtype)
    own = net.state_dict()
    copied = {key: value for key, value in unet.state_dict().items() if key in own}
    net.load_state_dict({**own, **copied})
    return net
