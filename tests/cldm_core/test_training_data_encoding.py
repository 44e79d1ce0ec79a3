"""Encoders: the embedded model, and models of diffusers and transformers."""

import copy
from dataclasses import replace

import pytest
import torch

from controlnet_pack.cldm_core import tiny
from controlnet_pack.cldm_core.encoders import ScaledAutoencoder, TextModel, sdxl_vector
from controlnet_pack.cldm_core.errors import CldmError
from controlnet_pack.cldm_core.pipeline import to_hint
from controlnet_pack.cldm_core.tiny.text import load_tokenizer
from controlnet_pack.cldm_core.training.batches import Batches
from controlnet_pack.cldm_core.training.circles import CirclePairs
from controlnet_pack.cldm_core.training.encoding import (
    DiffusersEncoders,
    SizeCondition,
    TinyEncoders,
    fingerprint,
)

from .training_pairs import picture

SIZES = (SizeCondition((512, 768), (0, 128), (512, 512)), SizeCondition((1, 2), (3, 4), (5, 6)))


@pytest.fixture(scope="module")
def embedded() -> TinyEncoders:
    return TinyEncoders()


def test_the_embedded_models_latents_give_the_picture_back(embedded):
    pixels = to_hint(picture(0, 128, 128)) * 2 - 1
    latents = embedded.latents(pixels)
    assert latents.shape == (1, 4, 16, 16)
    assert not latents.requires_grad
    back = tiny.ScaledVAE(tiny.load_vae(), tiny.scale_factor()).decode(latents)
    assert (back - pixels).square().mean() / 4 < 0.01  # 20 dB


def test_the_embedded_models_latents_are_scaled_for_the_unet(embedded):
    source = CirclePairs(8, 128)
    pixels = torch.cat([to_hint(source[n].read_target()) for n in range(8)]) * 2 - 1
    assert 0.5 < embedded.latents(pixels).std() < 2


def test_the_embedded_models_prompts_are_those_of_its_pipeline(embedded):
    context, y = embedded.texts(["hut", ""], SIZES)
    assert context.shape == (2, 32, 128)
    assert y is None
    assert not embedded.sized
    assert torch.equal(context, tiny.TinyText()(["hut", ""]))


def test_batches_with_the_embedded_model(embedded):
    batch = Batches(CirclePairs(4, 128), embedded, batch_size=2, resolution=128, seed=0)[0]
    assert batch.latents.shape == (2, 4, 16, 16)
    assert batch.context.shape == (2, 32, 128)
    assert not any(tensor.requires_grad for tensor in (batch.latents, batch.context))


def test_the_key_names_weights_and_types(embedded):
    assert embedded.key == TinyEncoders().key
    layer = torch.nn.Linear(100, 100)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    assert fingerprint(torch.nn.Linear(100, 100)) != before
    with torch.no_grad():
        layer.weight += 1e-3
    assert fingerprint(layer) != before
    assert fingerprint(layer.half()) != fingerprint(layer.float())


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(tiny.WEIGHTS)


def text_config(width: int, hidden_layers: int = 3):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=1280,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=hidden_layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=24,
        bos_token_id=1278,
        eos_token_id=1279,
        pad_token_id=1279,
    )


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture(scope="module")
def models(tokenizer):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel(text_config(16)).eval()
    second = CLIPTextModelWithProjection(text_config(32)).eval()
    return TextModel(tokenizer, first), TextModel(tokenizer, second)


def test_an_autoencoder_of_diffusers(vae, models):
    encoders = DiffusersEncoders(vae, models[:1])
    pixels = to_hint(picture(0)) * 2 - 1
    latents = encoders.latents(pixels)
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(latents, mean * 0.5)
    assert torch.equal(latents, encoders.latents(pixels))


def test_one_text_model_as_in_stable_diffusion_1(vae, models):
    encoders = DiffusersEncoders(vae, models[:1])
    context, y = encoders.texts(["hut", "a cat"], SIZES)
    ids = models[0].ids(["hut", "a cat"])
    assert ids.shape == (2, 32)
    with torch.no_grad():
        assert torch.equal(context, models[0].encoder(ids).last_hidden_state)
    assert y is None
    assert not encoders.sized


def test_two_text_models_as_in_sdxl(vae, models):
    encoders = DiffusersEncoders(vae, models)
    context, y = encoders.texts(["hut", "a cat"], SIZES)
    assert encoders.sized
    assert context.shape == (2, 32, 16 + 32)
    assert y.shape == (2, 24 + 6 * 256)
    ids = models[0].ids(["hut", "a cat"])
    with torch.no_grad():
        states = [model.encoder(ids, output_hidden_states=True) for model in models]
    assert torch.equal(context, torch.cat([state.hidden_states[-2] for state in states], -1))
    assert torch.equal(y[:, :24], states[1].text_embeds)


def test_sizes_are_embedded_as_diffusers_does():
    from diffusers.models.embeddings import Timesteps

    pooled = torch.randn(2, 24)
    y = sdxl_vector(pooled, [size.numbers for size in SIZES])
    ids = torch.tensor([[512, 768, 0, 128, 512, 512], [1, 2, 3, 4, 5, 6]])
    expected = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(ids.flatten())
    torch.testing.assert_close(y[:, 24:], expected.reshape(2, -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(y[:, :24], pooled)


def test_pictures_are_decoded_one_by_one(vae, monkeypatch):
    counts, decode = [], vae.decode

    def counted(latents):
        counts.append(len(latents))
        return decode(latents)

    latents = torch.randn(3, 4, 2, 2)
    with torch.no_grad():
        together = decode(latents / 0.5).sample
        monkeypatch.setattr(vae, "decode", counted)
        pixels = ScaledAutoencoder(vae).decode(latents)
    assert counts == [1, 1, 1]
    torch.testing.assert_close(pixels, together)


def test_the_key_names_scale_tokenizer_and_pad(vae, models):
    first = models[0]

    def key(vae=vae, **changes):
        return DiffusersEncoders(vae, [replace(first, **changes)]).key

    scaled, shifted, more = (copy.deepcopy(one) for one in (vae, vae, first.tokenizer))
    scaled.register_to_config(scaling_factor=0.25)
    shifted.register_to_config(shift_factor=0.1)
    more.add_tokens(["hutlike"])
    assert key(copy.deepcopy(vae), tokenizer=copy.deepcopy(first.tokenizer)) == key()
    keys = {key(), key(scaled), key(shifted), key(tokenizer=more), key(pad=0)}
    assert len(keys) == 5


def test_half_precision_models_give_embeddings_and_latents_in_single(vae, models):
    half = copy.deepcopy(vae).bfloat16()
    encoders = DiffusersEncoders(half, models[:1])
    assert encoders.latents(to_hint(picture(0)) * 2 - 1).dtype == torch.float32
    assert encoders.key != DiffusersEncoders(vae, models[:1]).key
    assert DiffusersEncoders(vae, models[:1], key="mine").key == "mine"


def test_three_text_models_are_refused(vae, models):
    with pytest.raises(CldmError, match="3 text models"):
        DiffusersEncoders(vae, (*models, models[0]))
