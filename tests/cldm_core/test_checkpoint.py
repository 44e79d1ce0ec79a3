"""Files: read with any prefix, refused with a sentence, never half-written."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    DamagedCheckpoint,
    UNetConfig,
    UnsupportedCheckpoint,
    load_controlnet,
    load_unet,
)
from controlnet_pack.cldm_core.checkpoint import config_metadata, inspect_checkpoint, read, save
from controlnet_pack.cldm_core.checkpoint.detect import controlnet_config, unet_config

SMALL = replace(TINY, model_channels=32, num_head_channels=32, context_dim=16)
VARIANTS = [
    TINY,
    replace(TINY, context_dim=768, num_heads=8, num_head_channels=-1),
    replace(TINY, use_linear_in_transformer=True, in_channels=9, out_channels=4),
    replace(TINY, adm_in_channels=24, transformer_depth=(0, 2, 3), transformer_depth_middle=3),
    replace(TINY, conv_resample=False, use_scale_shift_norm=True),
    replace(
        TINY, num_res_blocks=(2, 1, 3), transformer_depth=(1, 0, 2, 1, 0, 1),
        transformer_depth_output=(1, 0, 2, 1, 0, 1, 1, 0, 1),
    ),
]  # fmt: skip


@pytest.fixture
def net() -> ControlNet:
    return ControlNet(ControlNetConfig(TINY))


def prefixed(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def on_meta(network: type[torch.nn.Module], config: object) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return network(config).state_dict()


@pytest.mark.parametrize("config", [SD15, SD21, SDXL, *VARIANTS])
def test_configurations_are_read_from_keys(config: UNetConfig) -> None:
    assert unet_config(on_meta(ControlledUNet, config)) == config
    found = controlnet_config(on_meta(ControlNet, ControlNetConfig(config, hint_channels=5)))
    assert found.hint_channels == 5
    encoder_part = {"transformer_depth_output": (), "out_channels": 0}
    for name in ("model_channels", "channel_mult", "transformer_depth", "context_dim", "num_heads"):
        assert getattr(found.unet, name) == getattr(config, name), name
    assert set(encoder_part) <= set(config.to_dict())


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "state dict", "wrapped"])
def test_a_controlnet_loads_from_every_container(
    net: ControlNet, tmp_path: Path, prefix: str, kind: str
) -> None:
    state = prefixed(prefix, net) | {"cond_stage_model.unrelated": torch.zeros(1)}
    if prefix == "":
        del state["cond_stage_model.unrelated"]
    # The ending is misleading on purpose: the kind is told from the content.
    path = tmp_path / "net.bin"
    if kind == "safetensors":
        save_file(state, path)
    elif kind != "state dict":
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)
    loaded = load_controlnet(state if kind == "state dict" else path)
    assert loaded.config == net.config
    assert not loaded.training
    assert all(map(torch.equal, loaded.state_dict().values(), net.state_dict().values()))


def test_a_whole_checkpoint_gives_its_unet_and_its_controlnet(net: ControlNet) -> None:
    unet = ControlledUNet(TINY)
    whole = prefixed("model.diffusion_model.", unet) | prefixed("control_model.", net)
    loaded = load_unet(whole)
    assert loaded.config == TINY
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_controlnet(whole, dtype=torch.float16).zero_convs[0][0].weight.dtype == torch.half
    assert load_unet(unet.state_dict()).config == TINY


def test_loading_keeps_the_stored_type_and_takes_no_second_copy(net: ControlNet) -> None:
    state = {key: value.bfloat16() for key, value in net.state_dict().items()}
    loaded = load_controlnet(state)
    assert loaded.time_embed[0].weight.dtype == torch.bfloat16
    assert loaded.time_embed[0].weight.data_ptr() == state["time_embed.0.weight"].data_ptr()


def test_a_file_that_we_write_carries_its_configuration(tmp_path: Path) -> None:
    # Heads of 32 channels break the rule that loaders go by: only the metadata can tell.
    config = ControlNetConfig(SMALL, hint_channels=1, global_average_pooling=True)
    path = tmp_path / "net.safetensors"
    save(ControlNet(config).state_dict(), path, config_metadata(config))
    assert load_controlnet(path).config == config
    assert list(tmp_path.iterdir()) == [path]
    stripped = dict(read(path).tensors)
    with pytest.raises(CheckpointMismatch, match="no multiple of 64: their number of heads"):
        load_controlnet(stripped)
    assert load_controlnet(stripped, config=config).config == config


def test_a_failed_write_leaves_the_old_file(
    net: ControlNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save(net.state_dict(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class Malicious:
    """Runs code when it is unpickled by a careless reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(
    tmp_path: Path, zipped: bool
) -> None:
    path, target = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"a": Malicious(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DamagedCheckpoint, match="could run code when read, so it was refused"):
        load_controlnet(path)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_files_are_told(net: ControlNet, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"net.{kind}"
    (save_file if kind == "safetensors" else torch.save)(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CldmError, match=r"truncated|damaged"):
        load_controlnet(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a checkpoint at all", "can't be read as safetensors"),
        (pickle.dumps([1, 2, 3], protocol=2), "can't be read as a PyTorch file"),
        ((2**63).to_bytes(8, "little") + b"{}", "can't be read as safetensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(CldmError, match=sentence):
        load_controlnet(path)


def test_the_wrong_kind_of_net_is_named(net: ControlNet) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="It holds a ControlNet: load it as one"):
        load_unet(net.state_dict())
    with pytest.raises(UnsupportedCheckpoint, match="It holds a base model"):
        load_controlnet(ControlledUNet(TINY).state_dict())
    with pytest.raises(UnsupportedCheckpoint, match="looks like a diffusers file"):
        load_controlnet({"controlnet_cond_embedding.conv_in.weight": torch.zeros(1)})
    with pytest.raises(UnsupportedCheckpoint, match="There is no file"):
        load_controlnet("nowhere.safetensors")


def test_missing_extra_and_misshapen_keys_are_named(net: ControlNet) -> None:
    state = net.state_dict()
    del state["middle_block.0.in_layers.0.bias"]
    state["surprise"] = torch.zeros(1)
    state["time_embed.0.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointMismatch) as caught:
        load_controlnet(state)
    for part in ("missing middle_block.0.in_layers.0.bias", "unexpected surprise", "is (7,) inst"):
        assert part in str(caught.value)


def test_bad_metadata_is_told(net: ControlNet, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    for text, sentence in (("{", "unreadable metadata"), ("[]", "no JSON object")):
        save_file(net.state_dict(), path, {"cldm_core.config": text})
        with pytest.raises(DamagedCheckpoint, match=sentence):
            load_controlnet(path)
    record = json.loads(config_metadata(net.config)["cldm_core.config"])
    record["unet"]["heads"] = 3
    save_file(net.state_dict(), path, {"cldm_core.config": json.dumps(record)})
    with pytest.raises(CldmError, match="not the configuration of a UNet"):
        load_controlnet(path)


def test_inspect_says_it_in_a_line(net: ControlNet) -> None:
    line = "embedded model ControlNet, cldm keys, hint 3 channels, fp32, 3.0 M"
    assert str(inspect_checkpoint(net.state_dict())) == line
    full = {k: v.half() for k, v in on_meta(ControlNet, ControlNetConfig(SD15)).items()}
    line = "SD 1.5 ControlNet, cldm keys, hint 3 channels, fp16, 361.3 M"
    assert str(inspect_checkpoint(full)) == line
    base = str(inspect_checkpoint(on_meta(ControlledUNet, SDXL)))
    assert base == "SDXL base model, cldm keys, fp32, 2567.5 M"
