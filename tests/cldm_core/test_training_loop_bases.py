"""Base models that are trained on: single files and folders of diffusers, SDXL's among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlnet_pack.cldm_core import (
    CldmError,
    ControlledUNet,
    NoiseSchedule,
    UNetConfig,
    load_control,
    load_unet,
)
from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.checkpoint import config_metadata, save
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.tiny import WEIGHTS
from controlnet_pack.cldm_core.tiny.text import load_tokenizer
from controlnet_pack.cldm_core.training import make_trainable, training_loss
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.loop import fit
from controlnet_pack.cldm_core.training.models import resolution_of, unet_of
from controlnet_pack.cldm_core.training.noise import draw
from controlnet_pack.cldm_core.training.plan import Plan, make_plan
from controlnet_pack.cldm_core.training.saving import save_unet

from .seeded import seeded_module
from .training_runs import SMALL

WIDTH = 16
SDXL_LIKE = replace(SMALL, context_dim=2 * WIDTH, adm_in_channels=WIDTH + 6 * 256)
# The width of its text is what Stable Diffusion 2 is known by.
SD2_LIKE = replace(SMALL, model_channels=64, num_head_channels=64, context_dim=1024)
FILE = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def write_folder(folder: Path, unet: UNetConfig, texts: Sequence[Any]) -> Path:
    """A small model in the folders of diffusers."""
    net = seeded_module(ControlledUNet, unet, 5)
    state = to_diffusers(net.state_dict())
    # Heads as narrow as these can't be told from the keys.
    file = folder / "unet" / FILE
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
    unet = load_unet(sdxl / "unet" / FILE)
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


def with_scheduler(folder: Path, base: Path, prediction_type: str) -> Path:
    """The base with a scheduler that says what it predicts."""
    shutil.copytree(base, folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps({**SCHEDULER, "prediction_type": prediction_type}))
    return folder


def first_loss(plan: Plan, prediction: Any) -> float:
    """That of the plan's net before its first step."""
    batch = plan.batches[0]
    noise, timesteps = draw(batch.latents, 1000, (plan.config.seed, 0, 0))
    inputs = batch.latents, noise, timesteps, batch.context, batch.hint
    nets = plan.trainable.unet, plan.trainable.net
    with torch.no_grad():
        loss = training_loss(*nets, *inputs, schedule=NoiseSchedule(), prediction=prediction)
    return float(loss)


def test_a_base_of_v_prediction_is_trained_and_sampled_as_one(tmp_path: Path, sd: Path) -> None:
    base, out = with_scheduler(tmp_path / "v", sd, "v_prediction"), tmp_path / "out"
    numbers = {"circles": 6, "resolution": 64, "batch_size": 1, "steps": 1, "held_out": 1}
    often = {"evaluate_every": 1, "sample_steps": 2, "log_every": 1}
    config = TrainConfig(base=str(base), out=str(out), device="cpu", **numbers, **often)
    plan = make_plan(config)
    expected, wrong = first_loss(plan, "v"), first_loss(plan, "eps")
    fitted = fit(
        plan.trainable, plan.batches, config, out=out, evaluator=plan.evaluator,
        history=History(out),
    )  # fmt: skip
    assert fitted.loss == pytest.approx(expected, rel=1e-5)
    assert fitted.loss != pytest.approx(wrong, rel=0.01)
    assert load_control(fitted.net).config.unet.prediction == "v"

    evaluator = plan.evaluator
    assert evaluator is not None
    samples = {"asked": evaluator(plan.trainable.net, 1).pictures[0]}
    for prediction in ("eps", "v"):
        evaluator.pipeline = replace(evaluator.pipeline, prediction=prediction)
        samples[prediction] = evaluator(plan.trainable.net, 1).pictures[0]
    assert np.array_equal(samples["asked"], samples["v"])
    assert not np.array_equal(samples["asked"], samples["eps"])


def test_v_prediction_has_the_resolution_of_such_models(tmp_path: Path, sd: Path) -> None:
    found = []
    for prediction_type in ("epsilon", "v_prediction"):
        folder = with_scheduler(tmp_path / prediction_type, sd, prediction_type)
        config = TrainConfig(base=str(folder))
        found.append(resolution_of(config, unet_of(config).config))
    assert found == [512, 768]


def test_of_stable_diffusion_2_it_is_asked_where_nothing_says_it(tmp_path: Path) -> None:
    file = tmp_path / "base" / "unet" / FILE
    state = seeded_module(ControlledUNet, SD2_LIKE, 5).state_dict()
    save(state, file)
    for base in (file, tmp_path / "base"):
        config = TrainConfig(base=str(base))
        for load in (unet_of, make_plan):
            with pytest.raises(CldmError, match="Set prediction to v for one of 768 pixels"):
                load(config)
        for prediction in ("eps", "v"):
            told = unet_of(replace(config, prediction=prediction))
            assert told.config.prediction == prediction
    save(state, file, {"modelspec.prediction_type": "v"})
    assert unet_of(config).config.prediction == "v"


@pytest.mark.parametrize("kind", ["controlnet", "control_lora"])
def test_a_new_net_starts_from_all_digits_of_the_file(tmp_path: Path, sd: Path, kind: str) -> None:
    config = TrainConfig(
        base=str(sd), kind=kind, precision="bf16", resolution=64, evaluate_every=0,
        device="cpu", out=str(tmp_path),
    )  # fmt: skip
    trainable = make_plan(config).trainable
    stored = load_unet(sd / "unet" / FILE, dtype=torch.float32).state_dict()
    copied = {key: value for key, value in trainable.net.state_dict().items() if key in stored}
    assert copied
    assert all(torch.equal(value, stored[key]) for key, value in copied.items())
    assert {weight.dtype for weight in trainable.unet.parameters()} == {torch.bfloat16}


def test_a_trained_unet_takes_the_place_of_its_base(tmp_path: Path, sd: Path) -> None:
    out = tmp_path / "out"
    options = [*QUICK, "--base", str(sd), "--evaluate-every", "0"]
    assert main(["train", *options, "--no-sd-locked", "--lr", "1e-3", "--out", str(out)]) == 0
    folder = tmp_path / "trained"
    shutil.copytree(sd, folder)
    shutil.copyfile(out / "last_unet.safetensors", folder / "unet" / FILE)
    config = TrainConfig(
        base=str(folder), init=str(out / "last.safetensors"), resolution=64, evaluate_every=0,
        out=str(tmp_path / "next"),
    )  # fmt: skip
    found = make_plan(config).trainable.unet.state_dict()
    expected, old = (
        load_unet(path, dtype=torch.float32).state_dict()
        for path in (out / "last_unet.safetensors", sd / "unet" / FILE)
    )
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert not torch.equal(found["out.2.weight"], old["out.2.weight"])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (replace(SDXL_LIKE, prediction="v"), True),
        (SDXL_LIKE, False),
        (replace(SMALL, prediction="v"), False),
    ],
)
def test_a_trained_unet_of_sdxl_says_by_a_key_that_it_predicts_velocity(
    tmp_path: Path, config: UNetConfig, told: bool
) -> None:
    unet = seeded_module(ControlledUNet, config, 5)
    trainable = make_trainable("controlnet", unet, sd_locked=False)
    path = save_unet(trainable, TrainConfig(sd_locked=False), tmp_path / "last.safetensors")
    assert path is not None
    assert ("v_pred" in read(path).tensors) == told
    assert load_unet(path).config.prediction == config.prediction


@pytest.mark.parametrize(("batch_size", "together"), [(1, 1), (100, 8)])
def test_samples_come_in_batches_no_larger_than_the_trainings(
    tmp_path: Path, batch_size: int, together: int
) -> None:
    plan = make_plan(TrainConfig(batch_size=batch_size, held_out=2, out=str(tmp_path)))
    assert plan.evaluator is not None
    assert plan.evaluator.batch == together
