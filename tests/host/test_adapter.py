"""What the adapter makes of files: number types, precision of attention, origin, head width."""

from collections.abc import Callable
from typing import Any

IN_HOST = """
import torch
from dataclasses import replace
files = pack("nodes.host.files")
core, tiny = pack("cldm_core"), pack("cldm_core.tiny")
checkpoint = pack("cldm_core.checkpoint")
torch.set_grad_enabled(False)
folder = files.controlnet_path.__globals__["folder_paths"].get_folder_paths("controlnet")[0]

def path(name):
    return files.Path(folder) / name

def distance(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())

# Weights as small as a young net's zero convolutions, in 8 bits with scales.
state = {k: v.float() for k, v in checkpoint.read(tiny.weights("canny")).tensors.items()}
key = "zero_convs.3.0.weight"
state[key] = torch.randn(state[key].shape) / 1000
config = core.load_control(state).config
path("x").parent.mkdir(parents=True, exist_ok=True)
checkpoint.save(state, path("small.safetensors"), checkpoint.config_metadata(config))
scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
for name, value in state.items():
    if value.ndim < 2:
        scaled[name] = value.half()
        continue
    scale = value.abs().max() / 448
    scaled[name] = (value / scale).to(torch.float8_e4m3fn)
    scaled[name.removesuffix("weight") + "scale_weight"] = scale
checkpoint.save(scaled, path("scaled.safetensors"))
loaded = files.load_control(path("scaled.safetensors")).control.net.state_dict()

# The origin stays with the control and its copies.
metadata = {**checkpoint.config_metadata(config), "licence": "CC0"}
checkpoint.save(state, path("told.safetensors"), metadata)
control = files.load_control(path("told.safetensors")).control
source = control.copy().source

sd21, narrow = core.SD21, replace(core.SD21, use_linear_in_transformer=False, prediction="v")
pooled = replace(config, global_average_pooling=True)
checkpoint.save(state, path("pooled.safetensors"), checkpoint.config_metadata(pooled))
wide = files.load_control(path("pooled.safetensors"), head_channels=32)
report(
    error=distance(loaded[key], state[key]), types=sorted({str(v.dtype) for v in loaded.values()}),
    name=source.name, licence=source.metadata["licence"], dtype=str(source.dtype),
    sd2=[files._is_sd2(c) for c in (sd21, narrow, core.SD15, core.SDXL, None)],
    heads=wide.control.net.config.unet.num_head_channels, notes=wide.notes,
)
"""


def test_what_the_adapter_makes_of_files(in_host: Callable[..., dict[str, Any]]) -> None:
    found = in_host(IN_HOST)
    assert found["error"] < 0.05, "the scales were multiplied out before anything was narrowed"
    assert not [name for name in found["types"] if "float8" in name]
    assert found["name"] == "told.safetensors"
    assert found["licence"] == "CC0"
    assert found["dtype"] == "torch.float32"
    assert found["sd2"] == [True, True, False, False, False]
    assert found["heads"] == 32
    assert any("Pooling: on, as the file says" in note for note in found["notes"])


BASES = """
import torch
from dataclasses import replace
from types import SimpleNamespace
import comfy.model_detection
checks, core = pack("nodes.host.checks"), pack("cldm_core")
found = {}
for name, config in {
    "SD 1.5": core.SD15,
    "SD 1.5 inpainting": replace(core.SD15, in_channels=9),
    "SD 2.1": core.SD21,
    "SDXL": core.SDXL,
}.items():
    with torch.device("meta"):
        state = core.ControlledUNet(config).state_dict()
    model = SimpleNamespace(model_config=comfy.model_detection.model_config_from_unet(state, ""))
    base = checks.unet_config_of(model)
    wanted, given = config.to_dict(), base.to_dict()
    found[name] = {key: given[key] for key in wanted if given[key] != wanted[key]}
    for other in (core.SD15, core.SD21, core.SDXL):
        with torch.device("meta"):
            net = core.ControlNet(core.ControlNetConfig(other))
        try:
            checks.check_model(net, model)
            fits = True
        except core.FamilyMismatch:
            fits = False
        assert fits == (other == replace(config, in_channels=4)), (name, other)
report(**found)
"""


def test_the_host_s_own_description_of_public_models_is_understood(
    in_host: Callable[..., dict[str, Any]],
) -> None:
    found = in_host(BASES)
    assert found == {"SD 1.5": {}, "SD 1.5 inpainting": {}, "SD 2.1": {}, "SDXL": {}}
