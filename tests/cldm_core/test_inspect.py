"""What inspection tells beyond the keys: metadata, surroundings, latents."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet_pack.cldm_core import (
    SD15,
    TINY,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    inspect_checkpoint,
)
from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.checkpoint import config_metadata
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

from .full_size_nets import MIRRORED, lora, of_diffusers, on_meta
from .samples import LOADED, adapter, controlnet, filled, prefixed
from .states import half


def test_what_keys_do_not_tell_is_unknown() -> None:
    info = inspect_checkpoint(controlnet())
    assert (info.hint, info.pooling, info.prediction, info.heads) == ("unknown",) * 4
    lines = info.details().splitlines()
    assert "what the hint must be: unknown" in lines
    assert "prediction: unknown" in lines


@pytest.mark.parametrize("name", ["t2i_adapter", "lllite"])
def test_nets_beside_a_unet_have_no_heads_and_no_prediction(name: str) -> None:
    info = inspect_checkpoint(next(iter(LOADED[name].values()))())
    assert (info.hint, info.pooling, info.prediction, info.heads) == ("unknown", "no", "", "")


def test_the_metadata_tells_it(tmp_path: Path) -> None:
    config = ControlNetConfig(replace(TINY, prediction="v"), global_average_pooling=True)
    texts = config_metadata(config) | {"cldm_core.hint": "edges, white on black"}
    save_file(controlnet(), tmp_path / "net.safetensors", texts)
    info = inspect_checkpoint(tmp_path / "net.safetensors")
    assert (info.hint, info.pooling) == ("edges, white on black", "yes")
    assert (info.prediction, info.heads) == ("v", "64 channels wide")
    assert "what the hint must be: edges, white on black" in info.details()


def test_a_default_prediction_of_a_control_net_is_no_knowledge(tmp_path: Path) -> None:
    save_file(controlnet(), tmp_path / "net.safetensors", config_metadata(ControlNetConfig(TINY)))
    assert inspect_checkpoint(tmp_path / "net.safetensors").prediction == "unknown"


def test_a_base_model_has_no_pooling_and_no_hint(tmp_path: Path) -> None:
    info = inspect_checkpoint(filled(ControlledUNet(TINY)))
    assert (info.pooling, info.hint, info.prediction) == ("", "", "unknown")
    save_file(filled(ControlledUNet(TINY)), tmp_path / "unet.safetensors", config_metadata(TINY))
    assert inspect_checkpoint(tmp_path / "unet.safetensors").prediction == "eps"


def test_pooling_that_the_metadata_leaves_out_is_unknown(tmp_path: Path) -> None:
    texts = config_metadata(ControlNetConfig(TINY))
    record = json.loads(texts["cldm_core.config"])
    del record["global_average_pooling"]
    save_file(controlnet(), tmp_path / "n.safetensors", {"cldm_core.config": json.dumps(record)})
    assert inspect_checkpoint(tmp_path / "n.safetensors").pooling == "unknown"


def test_a_net_inside_a_whole_checkpoint_is_told() -> None:
    whole = prefixed("control_model.", controlnet()) | {"model.x": torch.ones(2_000_000)}
    note = inspect_checkpoint(whole).note
    assert note == "It lies inside a whole checkpoint with 2.0 M other numbers."
    assert inspect_checkpoint(prefixed("control_model.", controlnet())).note == ""


def test_unusual_latents_are_told() -> None:
    nine = replace(TINY, in_channels=9)
    told = "It reads latents of 9 channels instead of 4."
    assert inspect_checkpoint(controlnet(nine)).note == told
    assert inspect_checkpoint(filled(ControlledUNet(nine))).note == told
    assert "note: It reads latents of 9 channels" in inspect_checkpoint(controlnet(nine)).details()
    assert inspect_checkpoint(adapter()).note == ""


def test_a_control_lora_that_does_not_fit_is_told() -> None:
    state = LOADED["control_lora"]["rank 4"]() | {"input_blocks.1.0.x.weight": torch.ones(1)}
    assert "unexpected input_blocks.1.0.x.weight" in inspect_checkpoint(state).note


HEADERS = {
    "SD 1.5": lambda: on_meta(lambda: ControlNet(ControlNetConfig(SD15))),
    "SDXL diffusers": lambda: of_diffusers("SDXL"),
    "union": lambda: on_meta(lambda: UnionControlNet(UnionConfig(ControlNetConfig(MIRRORED), 8))),
    "Control-LoRA": lambda: lora(256),
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_of_a_full_size_file_is_enough(name: str, tmp_path: Path) -> None:
    """Everything behind it is a hole; benchmarks/load.py has the times."""
    path = tmp_path / "net.safetensors"
    _sparse(half(HEADERS[name]()), path)
    info = inspect_checkpoint(path)
    assert (info.missing, info.unexpected, info.misshapen) == ((), (), ())
    assert info.size == path.stat().st_size > 100 * path.stat().st_blocks * 512


def _sparse(state: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a file of full size whose numbers take no room on the disk."""
    header, end = {}, 0
    for key, value in state.items():
        size = value.numel() * 2
        header[key] = {
            "dtype": "F16",
            "shape": list(value.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_has_to_be_read_whole_is_told(zipped, tmp_path):
    torch.save(controlnet(), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    note = inspect_checkpoint(tmp_path / "net.pth").note
    assert ("has to be read whole" in note) is not zipped


def test_what_a_terminal_would_act_on_is_written_out(tmp_path: Path, capsys) -> None:
    evil = "\x1b[2J\n"
    save_file({**controlnet(), f"{evil}x": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file(controlnet(), tmp_path / "b.safetensors", {"hint": evil})
    save_file({evil: torch.ones(1)}, tmp_path / "c\x1b.safetensors")
    main(["inspect", *map(str, sorted(tmp_path.iterdir()))])
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "unexpected: \\x1b[2J\\nx" in told
