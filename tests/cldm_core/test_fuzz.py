"""Hostile files: whatever a file holds, it loads or is refused with a sentence, in little room."""

import io
import json
import os
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from safetensors.torch import save, save_file

from controlnet_pack.cldm_core import (
    CldmError,
    DamagedCheckpoint,
    inspect_checkpoint,
    load_control,
    load_unet,
)
from controlnet_pack.cldm_core.checkpoint import config_metadata
from controlnet_pack.cldm_core.checkpoint.convert import convert
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.t2i_adapter import AdapterConfig

from .hostile import CONFIG, Hostile, base, safetensors_files, torch_files
from .samples import adapter

SECONDS = 10
"""What any one reading of a file may take, on a machine that others use too."""
MEGABYTES = 300
"""What it may add to the memory of the process."""
EVERYTHING = st.one_of(safetensors_files(), torch_files())


@pytest.fixture(autouse=True, scope="module")
def _nothing_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


def peak() -> float:
    """The most memory since the last call, in MB; 0 where the system doesn't tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    # 5 starts the measurement of the most anew.
    Path("/proc/self/clear_refs").write_text("5")
    return int(lines["VmHWM"].split()[0]) / 1024


def refusal(act: Callable[[], Any]) -> str:
    """What an action on a file is refused with, empty where it succeeds; it must be a sentence."""
    peak()
    before, started = peak(), time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            act()
    except CldmError as error:
        said = str(error)
        assert said.endswith((".", ".)")), said
        assert len(said.split()) >= 5, said
        assert "\n" not in said, said
        assert len(said) < 2000, said
        return said
    finally:
        assert time.monotonic() - started < SECONDS
        assert peak() - before < MEGABYTES
    return ""


def refusals(path: Path) -> list[str]:
    """What each way to read a file says; a conversion that fails leaves nothing behind."""
    target = path.with_name("converted.safetensors")
    said = [refusal(partial(act, path)) for act in (inspect_checkpoint, load_control, load_unet)]
    said.append(refusal(partial(convert, path, target)))
    assert set(path.parent.iterdir()) == {path} | (set() if said[-1] else {target})
    target.unlink(missing_ok=True)
    return said


def fuzz(examples: int) -> None:
    cases = 0

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(EVERYTHING)
    def run(case: Hostile) -> None:
        nonlocal cases
        cases += 1
        with tempfile.TemporaryDirectory() as folder:
            refusals(case.write(Path(folder)))

    run()
    assert cases >= examples


def test_500_hostile_files() -> None:
    fuzz(500)


@pytest.mark.slow
def test_10000_hostile_files() -> None:
    fuzz(10_000)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_files_cut_at_every_byte_of_the_first_kilobyte(kind: str, tmp_path: Path) -> None:
    state, path = base("lllite"), tmp_path / "net.file"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    for length in range(1024):
        path.write_bytes(content[:length])
        act = inspect_checkpoint if length % 2 else load_control
        assert refusal(partial(act, path)), length


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("net", ["cldm", "union", "t2i", "lllite", "control_lora", "difference"])
def test_weights_that_are_no_numbers_are_told(net: str, number: float) -> None:
    state = base(net)
    key = next(key for key in state if key.endswith(".bias"))
    broken = state[key].clone()
    broken[-1] = number
    with pytest.raises(DamagedCheckpoint, match=r"no numbers \(NaN\) in '[a-z0-9_.]*\.bias': its"):
        load_control({**state, key: broken})


def test_a_unet_with_weights_that_are_no_numbers_is_told() -> None:
    state = {key: torch.full_like(value, torch.nan) for key, value in base("unet").items()}
    with pytest.raises(DamagedCheckpoint, match=r"\(NaN\) in '.*' and \d+ more: its training"):
        load_unet(state)


@pytest.mark.parametrize(
    "config",
    [
        {"transformer_depth": [10**9, 1]},
        {"transformer_depth_middle": 10**7},
        {"num_res_blocks": [10**9, 1]},
        {"model_channels": 32 * 10**30},
    ],
)
def test_configurations_of_absurd_size_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    record = json.loads(config_metadata(CONFIG)["cldm_core.config"])
    record["unet"] |= config
    path = tmp_path / "net.safetensors"
    save_file(base("cldm"), path, {"cldm_core.config": json.dumps(record)})
    assert "" not in refusals(path)[1:]


def test_an_adapter_of_absurd_depth_is_refused(tmp_path: Path) -> None:
    texts = config_metadata(AdapterConfig())
    record = json.loads(texts["cldm_core.config"]) | {"num_res_blocks": 10**8}
    path = tmp_path / "net.safetensors"
    save_file(adapter(), path, {"cldm_core.config": json.dumps(record)})
    assert "" not in refusals(path)[1:]


def test_keys_that_name_thousands_of_blocks_build_none(tmp_path: Path) -> None:
    state, path = dict(base("cldm")), tmp_path / "net.safetensors"
    block = {key: value for key, value in state.items() if key.startswith("input_blocks.1.0.")}
    for index in range(3, 100):
        state |= {
            key.replace("blocks.1.", f"blocks.{index}."): value for key, value in block.items()
        }
        state[f"input_blocks.{index}.1.transformer_blocks.99.norm1.weight"] = torch.ones(1)
    path.write_bytes(save({key: value.clone() for key, value in state.items()}))
    assert "" not in refusals(path)[1:]


def header_file(header: Any, path: Path, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    "shape",
    [[0, 2**62], [2**62, 2**62, 0], [2**40, 2**40], [10**30, 0], [-1, 0], [2**31] * 3 + [0]],
)
def test_shapes_beyond_any_memory_take_none(shape: list[int], tmp_path: Path) -> None:
    entries = {
        key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for key in base("cldm")
    }
    assert "" not in refusals(header_file(entries, tmp_path / "net.safetensors"))[1:]


@pytest.mark.parametrize("length", [0, 1, 7, 2**25, 2**31, 2**63, 2**64 - 1])
def test_headers_that_lie_about_their_length(length: int, tmp_path: Path) -> None:
    assert "" not in refusals(header_file({}, tmp_path / "net.safetensors", length=length))


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    spans = [[0, 8], [4, 12]]
    entries = {
        f"zero_convs.{i}.0.weight": {"dtype": "F32", "shape": [2], "data_offsets": span}
        for i, span in enumerate(spans)
    }
    path = header_file(entries, tmp_path / "net.safetensors", bytes(12))
    assert all("can't be read as safetensors" in said for said in refusals(path))


def test_keys_of_a_hundred_thousand_words(tmp_path: Path) -> None:
    state = dict(to_diffusers(base("cldm"))) | {"a." * 200_000: torch.ones(1)}
    save_file(state, tmp_path / "net.safetensors")
    # A conversion leaves out what lies beside the net.
    assert all(refusals(tmp_path / "net.safetensors")[1:3])


@pytest.mark.slow
def test_a_header_of_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    entries = {f"zero_convs.{i}.0.weight": entry for i in range(100_000)}
    assert "" not in refusals(header_file(entries, tmp_path / "net.safetensors"))[1:]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["expanded", "meta", "sparse", "quantised"])
def test_tensors_that_claim_more_than_they_hold(kind: str, zipped: bool, tmp_path: Path) -> None:
    made = {
        "expanded": lambda: torch.zeros(1).expand(2**20, 2**20),
        "meta": lambda: torch.empty(2**20, 2**20, device="meta"),
        "sparse": lambda: torch.sparse_coo_tensor(
            torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (2**20, 2**20)
        ),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    }
    path = tmp_path / "net.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {**base("cldm"), "time_embed.0.weight": made[kind]()}
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert "" not in refusals(path)


def test_archives_that_unpack_to_gigabytes_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("net/version", "3\n")
        with archive.open("net/data.pkl", "w") as record:
            for _ in range(20):
                record.write(bytes(2**24))
    assert path.stat().st_size < 2**22
    assert all("is packed in a way" in said for said in refusals(path))


def test_archives_packed_again_are_refused(tmp_path: Path) -> None:
    stored, path = io.BytesIO(), tmp_path / "net.pth"
    torch.save(base("lllite"), stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert all("is packed in a way" in said for said in refusals(path))


PICKLES = {
    "protocol 0": b"cos\nmkdir\n(S'ran'\ntR.",
    "protocol 2": b"\x80\x02cos\nmkdir\n(X\x03\x00\x00\x00ranR.",
    "memory": b"\x80\x02c__builtin__\nbytearray\n\x8a\x08\0\0\0\0\0\0\0\x10\x85R.",
    "stack": b"\x80\x02" + b"0" * 99 + b".",
    "depth": b"\x80\x02" + b"]" + b"\x85" * 20_000 + b".",
    "short": b"\x80\x02J\0",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PICKLES)
def test_bare_pickles_are_refused_and_run_nothing(
    name: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "net.pth"
    path.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/data.pkl", PICKLES[name])
            archive.writestr("net/version", "3\n")
            archive.writestr("net/byteorder", "little")
    else:
        path.write_bytes(PICKLES[name])
    assert "" not in refusals(path)
    assert os.listdir(tmp_path) == ["folder"]
