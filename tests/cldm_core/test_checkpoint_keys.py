"""Names and shapes of full-size networks are those of the public checkpoints (data/README.md)."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from controlnet_pack.cldm_core import ControlledUNet, ControlNet, ControlNetConfig, UNetConfig

from .parity_cases import SD15, SD21, SDXL, Params
from .seeded import shapes_of

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(("name", "params"), [("sd15", SD15), ("sd21", SD21), ("sdxl", SDXL)])
def test_keys_and_shapes(name: str, params: Params) -> None:
    published = json.loads(gzip.decompress((DATA / f"keys_{name}.json.gz").read_bytes()))
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig.from_params({**params, "hint_channels": 3}))
        unet = ControlledUNet(UNetConfig.from_params({**params, "out_channels": 4}))
    for prefix, module in (("control_model", net), ("model.diffusion_model", unet)):
        shapes = {key: tuple(shape) for key, shape in published[prefix].items()}
        assert shapes_of(module) == shapes
