"""Files: read with any prefix, refused with a sentence, never half-written."""

import json
import os
import zipfile
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
from controlnet_pack.cldm_core.errors import listed

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
    # A ControlNet's keys tell nothing of its base's decoder.
    decoder = {
        "transformer_depth_output": config.transformer_depth_output,
        "out_channels": config.out_channels,
    }
    assert replace(found.unet, **decoder) == config


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


class LateLinear(torch.nn.Module):
    """A layer as some hosts have it: without parameters until a state dict is loaded."""

    def __init__(self, *_: object, bias: bool = True, **__: object) -> None:
        super().__init__()

    def _load_from_state_dict(self, state, prefix, *_: object) -> None:
        self.weight = torch.nn.Parameter(state[prefix + "weight"])


def test_layers_may_come_without_parameters(net: ControlNet) -> None:
    ops = type("Ops", (), {**vars(torch.nn), "Linear": LateLinear})
    loaded = load_controlnet(net.state_dict(), ops=ops)
    assert torch.equal(loaded.time_embed[0].weight, net.time_embed[0].weight)


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


def test_a_written_file_has_the_mode_of_a_new_file(net: ControlNet, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "net.safetensors"
    save(net.state_dict(), str(path))
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert list(path.parent.iterdir()) == [path]


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    whole = torch.rand(4, 4)
    state = {"a": whole, "b": whole, "c": whole[1:], "d": whole.T}
    save(state, tmp_path / "shared.safetensors")
    written = read(tmp_path / "shared.safetensors").tensors
    assert all(torch.equal(written[key], value) for key, value in state.items())


def test_two_writers_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, names = tmp_path / "net.safetensors", set()
    monkeypatch.setattr(os, "fsync", lambda _: names.update(p.name for p in tmp_path.iterdir()))
    for _ in range(2):
        save({"a": torch.zeros(1)}, path)
        path.unlink()
    assert len(names) == 2
    assert all(name.startswith("net.safetensors.") and name.endswith(".part") for name in names)


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


def test_the_wrong_kind_of_net_is_named(net: ControlNet) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="It holds a ControlNet: load it as one"):
        load_unet(net.state_dict())
    with pytest.raises(
        UnsupportedCheckpoint, match=r"holds a base model.* load it with Load Checkpoint"
    ):
        load_controlnet(ControlledUNet(TINY).state_dict())
    with pytest.raises(UnsupportedCheckpoint, match=r"keys, which start with a.b, c"):
        load_controlnet({"c": torch.zeros(1), "a.b": torch.zeros(1)})
    with pytest.raises(UnsupportedCheckpoint, match="There is no file"):
        load_controlnet("nowhere.safetensors")


def test_a_torch_script_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    # What torch.jit.save writes; it warns that it is deprecated.
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"net/{name}", b"")
    with pytest.raises(UnsupportedCheckpoint, match="is a TorchScript program") as caught:
        load_controlnet(path)
    assert "\n" not in str(caught.value)


def test_only_the_first_line_of_torch_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken\nfile a bug with torch")

    path = tmp_path / "net.pth"
    torch.save({}, path)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(DamagedCheckpoint, match=r"\(broken\): it is truncated or damaged"):
        load_controlnet(path)


def test_weights_that_are_no_floats_are_refused(net: ControlNet) -> None:
    for stored in (torch.int8, torch.bool, torch.complex64):
        state = {key: torch.zeros(v.shape, dtype=stored) for key, v in net.state_dict().items()}
        for dtype in (None, torch.float16):
            with pytest.raises(UnsupportedCheckpoint, match="expected floating-point weights"):
                load_controlnet(state, dtype=dtype)


def test_mixed_types_become_the_most_common_one(net: ControlNet) -> None:
    state = {k: v.half() if v.ndim > 1 else v for k, v in net.state_dict().items()}
    loaded = load_controlnet(state)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float16}
    assert ", fp16, " in str(inspect_checkpoint(state))


@pytest.mark.parametrize(
    "key",
    [
        "input_blocks.0.0.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.1.0.out_layers.3.weight",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.1.1.proj_in.weight",
        "input_hint_block.0.weight",
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (0, 0), (0, 0, 0, 0), (1, 1, 1, 1, 1)])
def test_odd_shapes_are_refused(net: ControlNet, key: str, shape: tuple[int, ...]) -> None:
    state = {**net.state_dict(), key: torch.zeros(shape)}
    for reader in (load_controlnet, controlnet_config):
        if reader is load_controlnet or "proj_in" not in key:
            with pytest.raises(CheckpointMismatch, match=key.replace(".", r"\.")):
                reader(state)


@pytest.mark.parametrize("key", ["x.y", "", "\N{SUPERSCRIPT TWO}.y", "-1.y", "9" * 5000 + ".y"])
def test_blocks_without_a_number_are_unexpected(net: ControlNet, key: str) -> None:
    state = {**net.state_dict(), f"input_blocks.{key}": torch.zeros(1)}
    with pytest.raises(CheckpointMismatch, match=r"unexpected input_blocks\."):
        load_controlnet(state)


def test_keys_that_are_no_text_are_left_out(net: ControlNet) -> None:
    state = {**net.state_dict(), 3: torch.zeros(1)}
    assert load_controlnet(state).config == net.config
    with pytest.raises(UnsupportedCheckpoint, match="holds no tensors by name"):
        load_controlnet({3: torch.zeros(1)})


def test_averages_of_training_are_no_part_of_a_prefixed_net(net: ControlNet) -> None:
    leftovers = {"model_ema.decay": torch.zeros(1)}
    assert load_controlnet({**prefixed("control_model.", net), **leftovers}).config == net.config
    with pytest.raises(CheckpointMismatch, match=r"unexpected model_ema\.decay"):
        load_controlnet({**net.state_dict(), **leftovers})


def test_what_is_read_is_not_read_again(net: ControlNet, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(net.state_dict(), path, config_metadata(net.config))
    checkpoint = read(path)
    assert read(checkpoint) is checkpoint
    assert load_controlnet(checkpoint).config == net.config


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


def test_names_with_line_breaks_leave_an_error_one_line() -> None:
    error = CheckpointMismatch("unexpected a\nb, \x1b[31m, schön.")
    assert str(error) == "unexpected a\\nb, \\x1b[31m, schön."


def test_lists_in_messages_end_with_how_many_more_there_are() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcde", 4) == "a, b, c, d and 1 more"
    assert listed("abcde", between="; ") == "a; b; c; and 2 more"
