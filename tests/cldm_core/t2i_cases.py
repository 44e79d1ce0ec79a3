"""The T2I-Adapters and inputs whose results were recorded from the references (data/README.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .parity_cases import INPUT_SEED, Case, Inputs, _small, _small_sdxl
from .seeded import seeded_tensor

ADAPTER_SEED = 4
CHANNELS = (32, 64, 128, 128)


@dataclass(frozen=True)
class AdapterCase:
    """An adapter by its configuration's values, the size of the latents and that of the hint."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (8, 16)
    batch: int = 1
    colours: int | None = None  # of the hint, where they differ from what the adapter reads
    hint_size: tuple[int, int] | None = None  # where it isn't 8 times the latents
    unet: Case | None = None  # a UNet that takes the features

    @property
    def values(self) -> dict[str, Any]:
        return {"channels": CHANNELS, **self.config}

    def hint(self) -> Tensor:
        colours = self.colours or self.values.get("hint_channels", 3)
        height, width = self.hint_size or (8 * self.size[0], 8 * self.size[1])
        shape = (self.batch, colours, height, width)
        return seeded_tensor(shape, f"{self.name}/hint", INPUT_SEED) / 12**0.5 + 0.5

    def inputs(self) -> Inputs:
        """What the UNet is fed; the hint there is a ControlNet's and unused."""
        assert self.unet is not None
        return self.unet.inputs()


_FULL_SD = Case("t2i_sd", _small(channel_mult=[1, 2, 4, 4]), size=(8, 16), timesteps=(801, 3))
_ODD_SD = Case("t2i_sd_odd", _small(channel_mult=[1, 2, 4, 4]), size=(5, 9))
_SDXL = Case("t2i_sdxl", _small_sdxl(), size=(8, 12), timesteps=(801, 3))
_ODD_SDXL = Case("t2i_sdxl_odd", _small_sdxl(), size=(5, 9))

# From the authors' code.
ORIGINAL = (
    AdapterCase("full"),
    AdapterCase("full_kernel_3", {"kernel_size": 3, "num_res_blocks": 3}),
    AdapterCase("full_conv_skip", {"kernel_size": 3, "use_conv": True, "skip_conv": True}),
    AdapterCase("full_skip", {"skip_conv": True}),
    AdapterCase("full_conv_odd", {"use_conv": True}, size=(5, 9)),
    AdapterCase("full_grey", {"hint_channels": 1}, batch=2),
    AdapterCase("light", {"kind": "light", "num_res_blocks": 4}),
    AdapterCase("light_grey", {"kind": "light", "num_res_blocks": 4, "hint_channels": 1}),
    AdapterCase("xl", {"kind": "xl"}),
    AdapterCase("xl_conv_odd", {"kind": "xl", "use_conv": True, "kernel_size": 3}, size=(6, 10)),
    AdapterCase("xl_grey", {"kind": "xl", "hint_channels": 1}),
)

# From ComfyUI's: sizes that the original can't halve, a colour picture for a grey adapter, and
# UNets that take the features.
HOST = (
    AdapterCase("grey_from_colours", {"hint_channels": 1}, colours=3),
    AdapterCase("full_odd", size=(5, 9), unet=_ODD_SD),
    AdapterCase("light_odd", {"kind": "light", "num_res_blocks": 4}, size=(5, 9)),
    AdapterCase("xl_odd_features", {"kind": "xl"}, size=(6, 10)),
    AdapterCase("xl_odd", {"kind": "xl"}, size=(5, 9), hint_size=(48, 80), unet=_ODD_SDXL),
    AdapterCase("full_unet", unet=_FULL_SD),
    AdapterCase("xl_unet", {"kind": "xl"}, size=(8, 12), unet=_SDXL),
)
