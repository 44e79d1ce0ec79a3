"""What a file is by its bytes and its nesting: read, or told in a sentence what it is instead."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from controlnet_pack.cldm_core import (
    TINY,
    CldmError,
    ControlNet,
    ControlNetConfig,
    DamagedCheckpoint,
    UnsupportedCheckpoint,
    load_controlnet,
)
from controlnet_pack.cldm_core.checkpoint import inspect_checkpoint, read


@pytest.fixture(scope="module")
def net() -> ControlNet:
    return ControlNet(ControlNetConfig(TINY))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a checkpoint at all", "is a text file, not a model"),
        (b"\x00\x01" * 9, "can't be read as safetensors"),
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
        (
            b"\n<!DOCTYPE html>".ljust(510) + "€".encode(),
            "is a web page, not a model: the download needs",
        ),
        (b'{"_class_name": "ControlNetModel"}', r"is a text file \(JSON\), not a model"),
        (pickle.dumps([1, 2, 3], protocol=2), "can't be read as a PyTorch file"),
        ((2**63).to_bytes(8, "little") + b"{}", "can't be read as safetensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(CldmError, match=sentence):
        load_controlnet(path)


def test_a_damaged_pytorch_file_is_not_called_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x00\x01" * 9)
    with pytest.raises(DamagedCheckpoint, match="can't be read as a PyTorch file") as caught:
        load_controlnet(path)
    assert "safetensors" not in str(caught.value)


def test_a_folder_is_told_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"is a folder: name the file in it \(diff"):
        load_controlnet(tmp_path)
    (tmp_path / "net.fp16.safetensors").touch()
    with pytest.raises(
        UnsupportedCheckpoint, match=r"the file in it \(net.fp16.safetensors, ...\)"
    ):
        load_controlnet(tmp_path)


@pytest.mark.parametrize("sign", [b"PK", b"PK\x03\x04", b"\x80\x02"])
def test_the_length_of_a_header_may_look_like_another_files_sign(
    net: ControlNet, tmp_path: Path, sign: bytes
) -> None:
    state = net.state_dict()
    path = tmp_path / "net.safetensors"
    if sign == b"PK\x03\x04":  # 64 MB of header: too large, and no archive either
        path.write_bytes(sign + bytes(4) + b"{}")
        with pytest.raises(DamagedCheckpoint, match="its header claims 67,324,752 bytes"):
            read(path)
        return
    content = safetensors_bytes(state)
    length = int.from_bytes(content[:8], "little")
    wanted = int.from_bytes(sign, "little")
    wanted += -(-(length - wanted) // 65536) * 65536
    header = content[8 : 8 + length].ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + length :])
    assert load_controlnet(path).config == net.config


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"module": state, "optimizer": {"state": {0: torch.ones(1)}}},
        lambda state: {"epoch": 3, "model": {"state_dict": state}},
        lambda state: {"params": {"lr": 1e-4}, "net": state},
        lambda state: {"controlnet": state},
        lambda state: {"model": {"controlnet": state}},
    ],
)
def test_tensors_are_found_in_what_training_wraps_them_in(
    net: ControlNet, tmp_path: Path, wrap: Callable[[object], object]
) -> None:
    torch.save(wrap(dict(net.state_dict())), tmp_path / "net.pth")
    assert load_controlnet(tmp_path / "net.pth").config == net.config


def test_named_groups_of_tensors_get_dotted_keys(tmp_path: Path) -> None:
    groups = {"image_proj": {"latents": torch.ones(1)}, "ip_adapter": {"1.to_k_ip": torch.ones(1)}}
    torch.save(groups, tmp_path / "ip.bin")
    assert set(read(tmp_path / "ip.bin").tensors) == {"image_proj.latents", "ip_adapter.1.to_k_ip"}
    assert inspect_checkpoint(tmp_path / "ip.bin").format == "ip_adapter"
