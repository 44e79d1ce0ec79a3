"""What a file is by its bytes and its nesting: read, or told in a sentence what it is instead."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file

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
from controlnet_pack.cldm_core.checkpoint.bookkeeping import only_bookkeeping


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


@pytest.fixture
def lightning(net: ControlNet, tmp_path: Path) -> Path:
    """A checkpoint as Lightning wrote it for Stable Diffusion, with NumPy's names of before 2.0."""
    names = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    names.append(f"{names[-1]}.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    content = {
        "epoch": 3,
        "callbacks": {callback: {"best_model_score": np.float64(0.5), "best_model_path": b"best"}},
        "state_dict": dict(net.state_dict()),
    }
    path = tmp_path / "net.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[names[-1]].ModelCheckpoint = callback
        torch.save(content, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"pytorch_lightning" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return path


def test_what_lightning_saves_beside_the_weights_is_passed_over(
    net: ControlNet, lightning: Path
) -> None:
    before = set(torch.serialization.get_safe_globals())
    assert read(lightning).tensors.keys() == net.state_dict().keys()
    assert set(torch.serialization.get_safe_globals()) == before


def test_one_file_is_read_at_a_time(lightning: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    reader = Thread(target=read, args=(lightning,))
    with only_bookkeeping():
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
    reader.join()
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_others_allow_in_the_process_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"net": {"a": torch.ones(1)}, "more": Path}, path)
    with torch.serialization.safe_globals([Path]):
        assert torch.load(path, weights_only=True)["more"] is Path
        with pytest.raises(DamagedCheckpoint, match="could run code when read"):
            read(path)
        assert Path in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("leaf", [torch.ones(1), 1], ids=["tensors", "numbers"])
def test_groups_named_again_and_again_are_taken_once(leaf: object, tmp_path: Path) -> None:
    group: object = leaf
    for _ in range(3):
        group = {str(number): group for number in range(400)}
    torch.save(group, tmp_path / "net.pth")
    with pytest.raises(UnsupportedCheckpoint):
        load_controlnet(tmp_path / "net.pth")


def test_a_file_without_tensors_is_told(tmp_path: Path) -> None:
    save_file({}, tmp_path / "net.safetensors")
    for act in (read, inspect_checkpoint):
        with pytest.raises(UnsupportedCheckpoint, match="holds no tensors by name"):
            act(tmp_path / "net.safetensors")


def test_a_part_of_a_divided_model_is_told(net: ControlNet, tmp_path: Path) -> None:
    whole = tmp_path / "model-00001-of-00001.safetensors"
    save_file(net.state_dict(), whole)
    assert load_controlnet(whole).config == net.config
    part = whole.rename(tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match="is one of 3 files that a model was divided"):
        load_controlnet(part)


def test_a_file_that_cannot_be_opened_is_told() -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"can't be read \(File name too long\)"):
        read(Path("x" * 300))


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_name_that_is_no_unicode_is_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / os.fsdecode(b"\xff." + ending.encode())
    path.write_bytes(b"\x80" * 99)
    with pytest.raises(UnsupportedCheckpoint, match="a name that isn't UTF-8"):
        read(path)
