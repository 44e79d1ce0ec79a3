"""SDXL in a single file is read as the same model in the folders of diffusers is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from controlnet_pack.cldm_core import (
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    UnsupportedCheckpoint,
    load_control,
)
from controlnet_pack.cldm_core.__main__ import main
from controlnet_pack.cldm_core.checkpoint import config_metadata, save
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.single_file import (
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    load_sdxl_texts,
)
from controlnet_pack.cldm_core.tiny import WEIGHTS
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.encoding import SizeCondition
from controlnet_pack.cldm_core.training.models import Base, load_base, unet_of

from .seeded import seeded_module
from .training_runs import SMALL
from .whole_files import open_clip, original_vae, public

# The second text encoder is the wider one, and projects to another width still.
WIDTHS, PROJECTED, TOKENS = (64, 128), 96, 77
UNET = replace(SMALL, context_dim=sum(WIDTHS), adm_in_channels=PROJECTED + 6 * 256)
PROMPTS = ("hut", "", "a cat in a hat " * 40)
SIZES = tuple(SizeCondition((512, 768), (0, n), (64, 64)) for n in range(len(PROMPTS)))


class Layouts(NamedTuple):
    """One model with random weights as a folder of diffusers and as a file, and its tokenizer."""

    folder: Path
    file: Path
    tokenizer: Path


def text_model(number: int, tokenizer: CLIPTokenizer) -> torch.nn.Module:
    """SDXL's first or second text encoder, of three layers."""
    kind = (CLIPTextModel, CLIPTextModelWithProjection)[number]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTHS[number],
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=WIDTHS[number] // 64,
        max_position_embeddings=TOKENS,
        projection_dim=PROJECTED,
        hidden_act=("quick_gelu", "gelu")[number],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = kind(config).eval()
    for weight in model.parameters():  # as drawn by transformers biases and norms do nothing
        torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(0)
    unet = seeded_module(ControlledUNet, UNET, 5).state_dict()
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025,
    )
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS, model_max_length=TOKENS)
    texts = [text_model(number, tokenizer) for number in range(2)]

    # Heads as narrow as the UNet's can't be told from the keys.
    told = config_metadata(UNET)
    save(to_diffusers(unet), folder / "unet" / "diffusion_pytorch_model.safetensors", told)
    vae.save_pretrained(folder / "vae")
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(folder / "tokenizer_2")
    for ending, model in zip(("", "_2"), texts, strict=True):
        model.save_pretrained(folder / f"text_encoder{ending}")

    state = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    state |= original_vae(vae)
    state |= {SDXL_CLIP_PREFIX + key: value for key, value in public(texts[0]).items()}
    state |= open_clip(texts[1], SDXL_OPEN_CLIP_PREFIX, (0, 1, 2))
    file = folder / "whole" / "model.safetensors"
    save(state, file, told)
    return Layouts(folder, file, WEIGHTS)


@pytest.fixture(scope="module")
def bases(layouts: Layouts) -> tuple[Base, Base]:
    """The model of the folder and that of the file."""
    configs = (
        TrainConfig(base=str(layouts.folder)),
        TrainConfig(base=str(layouts.file), tokenizer=str(layouts.tokenizer)),
    )
    folder, file = (load_base(config, torch.device("cpu")) for config in configs)
    return folder, file


def pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_embeddings_are_the_same(bases: tuple[Base, Base]) -> None:
    contexts, vectors = zip(*(base.encoders.texts(PROMPTS, SIZES) for base in bases), strict=True)
    assert contexts[1].shape == (3, TOKENS, sum(WIDTHS))
    assert torch.equal(*contexts)
    assert vectors[1].shape == (3, PROJECTED + 6 * 256)
    assert torch.equal(*vectors)
    assert vectors[1][:, :PROJECTED].std(dim=0).min() > 0, "each prompt has pooled ones of its own"


def test_the_latents_and_pictures_are_the_same(bases: tuple[Base, Base]) -> None:
    latents = [base.encoders.latents(pictures()) for base in bases]
    assert latents[1].shape == (2, 4, 8, 8)
    assert torch.equal(*latents)
    with torch.no_grad():
        decoded = [base.pipeline.autoencoder.decode(latents[0]) for base in bases]
    assert torch.equal(*decoded)


def test_samples_are_encoded_as_training_pictures_of_their_size_are(
    bases: tuple[Base, Base],
) -> None:
    size = SizeCondition((64, 96), (0, 0), (64, 96))
    for base in bases:
        context, y = base.pipeline.encode_text(PROMPTS, (64, 96))
        expected = base.encoders.texts(PROMPTS, [size] * len(PROMPTS))
        assert torch.equal(context, expected[0])
        assert torch.equal(y, expected[1])


def test_the_layer_before_the_last_is_read_without_a_norm(bases: tuple[Base, Base]) -> None:
    _, file = bases
    context, _ = file.encoders.texts(PROMPTS, SIZES)
    seen: list[Tensor] = []
    for model in file.pipeline.encode_text.models:
        inner = getattr(model.encoder, "text_model", model.encoder)
        hook = inner.encoder.layers[-1].register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        with torch.no_grad():
            model.encoder(model.ids(PROMPTS))
        hook.remove()
    assert torch.equal(context, torch.cat(seen, dim=-1))


def test_the_embeddings_are_those_of_diffusers_pipeline(
    layouts: Layouts, bases: tuple[Base, Base]
) -> None:
    folder = layouts.folder
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=None,
        scheduler=None,
    )
    expected, _, pooled, _ = pipeline.encode_prompt(
        list(PROMPTS), device="cpu", do_classifier_free_guidance=False
    )
    context, y = bases[1].encoders.texts(PROMPTS, SIZES)
    assert torch.equal(context, expected)
    assert torch.equal(y[:, :PROJECTED], pooled)


def test_half_precision_weights_compute_in_single(layouts: Layouts, tmp_path: Path) -> None:
    file = read(layouts.file)
    halved = {key: value.half() for key, value in file.tensors.items()}
    save(halved, tmp_path / "half.safetensors", file.metadata)
    config = TrainConfig(
        base=str(tmp_path / "half.safetensors"),
        tokenizer=str(layouts.tokenizer),
        precision="fp16",
    )
    base = load_base(config, torch.device("cpu"))
    texts = [model.encoder for model in base.pipeline.encode_text.models]
    parts = [base.pipeline.autoencoder.vae, *texts]
    assert {one.dtype for part in parts for one in part.parameters()} == {torch.float32}
    assert next(base.pipeline.unet.parameters()).dtype == torch.float16
    assert base.encoders.latents(pictures()).dtype == torch.float32


def test_a_key_tells_v_prediction(layouts: Layouts, tmp_path: Path) -> None:
    file, path = read(layouts.file), tmp_path / "v.safetensors"
    save({**file.tensors, "v_pred": torch.zeros(0)}, path, file.metadata)
    config = TrainConfig(base=str(path), tokenizer=str(layouts.tokenizer))
    pipeline = load_base(config, torch.device("cpu")).pipeline
    assert (pipeline.prediction, pipeline.unet.config.prediction) == ("v", "v")
    assert unet_of(config).config.prediction == "v"
    assert unet_of(replace(config, prediction="eps")).config.prediction == "eps"


def test_zero_terminal_snr_is_refused(layouts: Layouts, tmp_path: Path) -> None:
    file, path = read(layouts.file), tmp_path / "noob.safetensors"
    marks = dict.fromkeys(("v_pred", "ztsnr"), torch.zeros(0))
    save({**file.tensors, **marks}, path, file.metadata)
    config = TrainConfig(base=str(path), tokenizer=str(layouts.tokenizer), prediction="v")
    for load in (unet_of, lambda one: load_base(one, torch.device("cpu"))):
        with pytest.raises(UnsupportedCheckpoint, match="has the key ztsnr, and only Stable Diff"):
            load(config)


def test_it_is_trained_on_from_the_command_line(
    layouts: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [
        *("--data", "circles", "--circles", "6", "--resolution", "64", "--batch-size", "1"),
        *("--steps", "2", "--held-out", "1", "--evaluate-every", "2", "--sample-steps", "2"),
        *("--device", "cpu", "--save-dtype", "fp32", "--out", str(out)),
        *("--base", str(layouts.file), "--tokenizer", str(layouts.tokenizer)),
    ]
    assert main(["train", *options, "--dry-run"]) == 0
    assert main(["train", *options]) == 0, capsys.readouterr().err
    net = load_control(out / "last.safetensors")
    assert net.config.unet.adm_in_channels == UNET.adm_in_channels


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (SDXL_CLIP_PREFIX, "no key starts with conditioner.embedders.0.transformer."),
        (SDXL_OPEN_CLIP_PREFIX, "no key starts with conditioner.embedders.1.model."),
        (f"{SDXL_OPEN_CLIP_PREFIX}text_projection", "text_projection"),
        (f"{SDXL_OPEN_CLIP_PREFIX}positional_embedding", "position_embedding"),
        (f"{SDXL_OPEN_CLIP_PREFIX}transformer.resblocks.2.ln_1", r"layers\.2\.layer_norm1"),
    ],
)
def test_what_is_missing_is_told(layouts: Layouts, gone: str, told: str) -> None:
    tensors = read(layouts.file).tensors
    kept = {key: value for key, value in tensors.items() if not key.startswith(gone)}
    with pytest.raises(CldmError, match=told):
        load_sdxl_texts(kept)


def test_only_known_keys_of_the_text_encoders_are_left_out(layouts: Layouts) -> None:
    tensors = read(layouts.file).tensors
    known = {
        f"{SDXL_CLIP_PREFIX}text_model.embeddings.position_ids": torch.arange(TOKENS)[None],
        f"{SDXL_OPEN_CLIP_PREFIX}logit_scale": torch.zeros(()),
    }
    load_sdxl_texts({**tensors, **known})
    for prefix in (SDXL_CLIP_PREFIX, SDXL_OPEN_CLIP_PREFIX):
        with pytest.raises(CldmError, match=r"unexpected .*surprise"):
            load_sdxl_texts({**tensors, f"{prefix}surprise": torch.zeros(1)})


def test_damaged_text_encoders_are_told(layouts: Layouts) -> None:
    tensors = read(layouts.file).tensors
    second = [key for key in tensors if key.startswith(SDXL_OPEN_CLIP_PREFIX)]
    for key in second:
        for shape in ((), (3,), (7, 5)):
            with pytest.raises(CheckpointMismatch, match=r"text encoder|The key "):
                load_sdxl_texts({**tensors, key: torch.zeros(shape)})
