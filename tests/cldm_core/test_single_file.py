"""Whole checkpoints: widths come from the keys, and each part computes what it was saved from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    UnsupportedCheckpoint,
    tiny,
)
from controlnet_pack.cldm_core.checkpoint import config_metadata, save
from controlnet_pack.cldm_core.encoders import TextModel
from controlnet_pack.cldm_core.pipeline import Settings
from controlnet_pack.cldm_core.single_file import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    VAE_PREFIX,
    load_pipeline,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from controlnet_pack.cldm_core.tiny import text

from .whole_files import open_clip as as_open_clip
from .whole_files import original_vae, public

WIDTH = 64


def new_vae():
    from diffusers import AutoencoderKL

    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    return AutoencoderKL(block_out_channels=[32, 64], layers_per_block=2, **blocks).eval()


def new_clip(layers: int, activation: str):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {**text.CONFIG, "hidden_size": WIDTH, "intermediate_size": 128}
    config |= {"num_attention_heads": 1, "num_hidden_layers": layers, "hidden_act": activation}
    return CLIPTextModel(CLIPTextConfig(**{**config, "max_position_embeddings": 77})).eval()


def open_clip(model) -> dict[str, torch.Tensor]:
    """The text encoder as OpenCLIP names it, with a last block that SD 2 leaves out."""
    return as_open_clip(model, OPEN_CLIP_PREFIX, (0, 1, 1))


def whole(
    unet: dict[str, torch.Tensor], encoder: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    prefixed = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    return prefixed | original_vae(new_vae()) | encoder


def clip_state() -> dict[str, torch.Tensor]:
    return {CLIP_PREFIX + key: value for key, value in public(new_clip(2, "quick_gelu")).items()}


def test_the_autoencoder_is_the_same() -> None:
    vae = new_vae()
    loaded = load_vae(original_vae(vae))
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        assert torch.equal(loaded.encode(pixels).latent_dist.mode(), latents)
        assert torch.equal(loaded.decode(latents).sample, vae.decode(latents).sample)


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_the_text_encoder_is_the_same(kind: str) -> None:
    model = new_clip(2, "quick_gelu" if kind == "clip" else "gelu")
    state = open_clip(model)
    if kind == "clip":
        state = {CLIP_PREFIX + key: value for key, value in public(model).items()}
    ids = torch.arange(10)[None]
    expected = model(ids).last_hidden_state
    assert torch.equal(load_text_encoder(state)(ids).last_hidden_state, expected)


def test_a_text_encoder_of_an_old_merge_is_the_same() -> None:
    state = clip_state()
    old = {key.replace("text_model.", ""): value for key, value in state.items()}
    assert old.keys().isdisjoint(state)
    ids = torch.arange(10)[None]
    expected, found = (load_text_encoder(each)(ids).last_hidden_state for each in (state, old))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_a_checkpoint_samples_a_picture(tmp_path: Path, kind: str) -> None:
    clip = new_clip(2, "quick_gelu")
    encoder = (
        {CLIP_PREFIX + k: v for k, v in public(clip).items()} if kind == "clip" else open_clip(clip)
    )
    unet = ControlledUNet(replace(TINY, context_dim=WIDTH)).state_dict()
    path = tmp_path / "model.safetensors"
    state = whole(unet, encoder)
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    pipeline = load_pipeline(path, tokenizer=str(tiny.WEIGHTS), prediction="v")
    # This VAE halves sizes once, so the picture is a quarter of what it will be with a real one.
    pictures = pipeline(["a cat", ""], (), Settings(steps=2, width=64, height=64, count=2))
    assert pictures.shape == (2, 16, 16, 3)


def test_open_clip_pads_with_zeros() -> None:
    class Model:
        device = "cpu"
        config = type("Config", (), {"max_position_embeddings": 77})

    row = TextModel(load_tokenizer(str(tiny.WEIGHTS)), Model(), pad=0).ids(["face"])[0].tolist()
    start, end = text.CONFIG["bos_token_id"], text.CONFIG["eos_token_id"]
    assert len(row) == 77
    assert row[0] == start
    assert row.count(end) == 1
    assert set(row[row.index(end) + 1 :]) == {0}


def test_an_inpainting_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ControlledUNet(replace(TINY, in_channels=9)).state_dict(), path)
    with pytest.raises(UnsupportedCheckpoint, match="It reads latents of 9 channels, as inpaint"):
        load_pipeline(path, tokenizer=str(tiny.WEIGHTS))


def test_missing_parts_are_named() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="has no autoencoder"):
        load_vae({"a": torch.zeros(1)})
    with pytest.raises(UnsupportedCheckpoint, match="has no text encoder"):
        load_text_encoder({"a": torch.zeros(1)})


def test_the_files_own_configuration_tells_the_prediction(tmp_path: Path) -> None:
    config = replace(TINY, context_dim=WIDTH, prediction="v")
    path = tmp_path / "model.safetensors"
    state = whole(ControlledUNet(config).state_dict(), clip_state())
    save(state, path, config_metadata(config))
    tokenizer = str(tiny.WEIGHTS)
    assert load_pipeline(str(path), tokenizer=tokenizer).prediction == "v"
    assert load_pipeline(path, tokenizer=tokenizer, prediction="eps").prediction == "eps"
    save(state, path)
    assert load_pipeline(path, tokenizer=tokenizer).prediction == "eps"
    del state["model.diffusion_model.out.2.bias"]
    save(state, path)
    with pytest.raises(CheckpointMismatch, match=r"model\.safetensors doesn't fit .*out\.2\.bias"):
        load_pipeline(path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "key",
    [
        "post_quant_conv.weight",
        "encoder.down.0.block.0.conv1.weight",
        "encoder.down.0.block.0.conv2.weight",
        "encoder.mid.attn_1.q.weight",
        "decoder.conv_in.bias",
        "decoder.up.1.block.2.norm1.weight",
    ],
)
def test_a_damaged_autoencoder_is_told(key: str) -> None:
    state = original_vae(new_vae())
    for shape in ((), (5,), (0, 0, 0, 0), (7, 5, 1, 1)):
        with pytest.raises(CheckpointMismatch, match=r"autoencoder|The key first_stage_model"):
            load_vae({**state, VAE_PREFIX + key: torch.zeros(shape)})
    del state[VAE_PREFIX + key]
    with pytest.raises(CheckpointMismatch, match=r"autoencoder|The key first_stage_model"):
        load_vae(state)


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_a_damaged_text_encoder_is_told(kind: str) -> None:
    state = clip_state() if kind == "clip" else open_clip(new_clip(2, "gelu"))
    used = [key for key in state if f"resblocks.{2}." not in key]
    for key in used[:12] + used[-4:]:
        for shape in ((), (3,), (7, 5)):
            with pytest.raises(CheckpointMismatch, match=r"text encoder|The key "):
                load_text_encoder({**state, key: torch.zeros(shape)})
        with pytest.raises(CheckpointMismatch, match=r"text encoder|The key "):
            load_text_encoder({k: v for k, v in state.items() if k != key})


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_only_known_keys_of_a_text_encoder_are_left_out(kind: str) -> None:
    model = new_clip(2, "gelu")
    if kind == "clip":
        state, prefix = clip_state(), CLIP_PREFIX
        known = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        known |= {"text_projection.weight": torch.zeros(WIDTH, WIDTH)}
    else:
        state, prefix = open_clip(model), OPEN_CLIP_PREFIX
        known = {"text_projection": torch.zeros(WIDTH, WIDTH)}
    known |= {"logit_scale": torch.zeros(())}
    state |= {prefix + key: value for key, value in known.items()}
    load_text_encoder(state)
    for unknown in ("surprise", "transformer.resblocks.0.surprise", "text_model.surprise"):
        with pytest.raises(CldmError, match=r"text encoder doesn't fit .*unexpected .*surprise"):
            load_text_encoder({**state, prefix + unknown: torch.zeros(1)})
