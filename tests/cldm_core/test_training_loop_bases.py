"""Base models that are trained on: single files and folders of diffusers, SDXL's among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlnet_pack.cldm_core import CldmError, ControlledUNet, UNetConfig, load_control, load_unet
from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.checkpoint import config_metadata, save
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.tiny import WEIGHTS
from controlnet_pack.cldm_core.tiny.text import load_tokenizer
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.plan import make_plan

from .seeded import seeded_module
from .training_runs import SMALL

WIDTH = 16
SDXL_LIKE = replace(SMALL, context_dim=2 * WIDTH, adm_in_channels=WIDTH + 6 * 256)


def write_folder(folder: Path, unet: UNetConfig, texts: Sequence[Any]) -> Path:
    """A small model in the folders of diffusers."""
    net = seeded_module(ControlledUNet, unet, 5)
    state = to_diffusers(net.state_dict())
    # Heads as narrow as these can't be told from the keys.
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save(state, file, config_metadata(unet))
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(folder / "vae")
    tokenizer = load_tokenizer(WEIGHTS)
    for number, kind in enumerate(texts):
        ending = "" if number == 0 else "_2"
        tokenizer.save_pretrained(folder / f"tokenizer{ending}")
        kind(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ).save_pretrained(folder / f"text_encoder{ending}")
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    both = (CLIPTextModel, CLIPTextModelWithProjection)
    return write_folder(tmp_path_factory.mktemp("sdxl"), SDXL_LIKE, both)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("sd"), replace(SMALL, context_dim=WIDTH), (CLIPTextModel,)
    )


QUICK = (
    *("--data", "circles", "--circles", "6", "--resolution", "64", "--batch-size", "1"),
    *("--steps", "2", "--held-out", "1", "--evaluate-every", "2", "--sample-steps", "2"),
    *("--log-every", "1", "--device", "cpu", "--save-dtype", "fp32"),
)


@pytest.mark.parametrize("kind", ["controlnet", "control_lora", "lllite"])
def test_sdxl_is_trained_on_with_both_text_encoders_and_sizes(
    tmp_path: Path, sdxl: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", *QUICK, "--base", str(sdxl), "--kind", kind, "--out", str(out)]) == 0, (
        capsys.readouterr().err
    )
    assert len(History(out).series("adherence")) == 2
    unet = load_unet(sdxl / "unet" / "diffusion_pytorch_model.safetensors")
    net = load_control(out / "last.safetensors", base=unet)
    if kind == "controlnet":
        assert net.config.unet.adm_in_channels == SDXL_LIKE.adm_in_channels


def test_batches_of_sdxl_carry_its_vector(tmp_path: Path, sdxl: Path) -> None:
    config = TrainConfig(base=str(sdxl), resolution=64, evaluate_every=0, out=str(tmp_path))
    plan = make_plan(config)
    batch = plan.batches[0]
    assert batch.context.shape[-1] == SDXL_LIKE.context_dim
    assert batch.y is not None
    assert batch.y.shape == (4, SDXL_LIKE.adm_in_channels)


def test_a_folder_with_one_text_encoder(
    tmp_path: Path, sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [*QUICK, "--base", str(sd), "--out", str(out), "--tensorboard"]
    assert main(["train", *options]) == 0
    assert list((out / "tensorboard").glob("events.*"))
    assert main(["train", *options, "--steps", "3", "--resume"]) == 0
    assert main(["train", *options, "--dry-run"]) == 0
    assert "holds a run at step 3: --resume goes on with it" in capsys.readouterr().out


def test_a_folder_of_another_model_is_told(
    tmp_path: Path, sd: Path, sdxl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CldmError, match="holds no base model: expected a folder of diffusers"):
        make_plan(TrainConfig(base=str(tmp_path), out=str(tmp_path)))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "unet").symlink_to(sdxl / "unet")
    for name in ("vae", "tokenizer", "text_encoder"):
        (mixed / name).symlink_to(sd / name)
    with pytest.raises(CldmError, match="holds 1, and its UNet needs two text encoders"):
        make_plan(TrainConfig(base=str(mixed), out=str(tmp_path)))
    (mixed / "vae").unlink()
    with pytest.raises(CldmError, match="can't be read as a base model"):
        make_plan(TrainConfig(base=str(mixed), out=str(tmp_path)))
