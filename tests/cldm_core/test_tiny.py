"""The embedded model as it is committed: small enough, measured, and following its hints."""

import hashlib
import json

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import canny, mask
from controlnet_pack.cldm_core import CldmError, tiny
from controlnet_pack.cldm_core.metrics import edge_f1, mask_iou
from controlnet_pack.cldm_core.pictures import read_picture
from controlnet_pack.cldm_core.pipeline import Control, Pipeline, Settings, to_hint

SETTINGS = Settings(steps=15, guidance=3.0, seed=7, width=tiny.SIZE, height=tiny.SIZE)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny.load_pipeline()


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((tiny.WEIGHTS.parent / "card" / "figures.json").read_text())


def test_weights_are_under_30_megabytes() -> None:
    files = list(tiny.WEIGHTS.glob("*.safetensors"))
    assert len(files) == 3 + len(tiny.CONTROLS)
    assert sum(file.stat().st_size for file in files) < 30e6


def test_the_card_s_figures_are_as_promised(figures: dict) -> None:
    assert figures["held_out"] == 64
    assert figures["vae_psnr_db"] >= 27
    edges = figures["canny"]
    assert edges["with_control"] >= 0.68
    assert edges["with_control"] - edges["without_control"] >= 0.28
    assert all(figures[name]["strength_0_is_without_bit_for_bit"] for name in tiny.CONTROLS)


def test_the_card_s_figures_are_those_of_these_weights(figures: dict) -> None:
    for name, expected in figures["sha256"].items():
        found = hashlib.sha256(tiny.weights(name).read_bytes()).hexdigest()
        assert found == expected, f"{name} has changed: measure again with cldm_core.tiny.build"


def test_the_card_tells_the_figures(figures: dict) -> None:
    card = (tiny.WEIGHTS.parent / "README.md").read_text(encoding="utf-8")
    for name in tiny.CONTROLS:
        for key in ("with_control", "half_strength", "without_control"):
            assert f"{figures[name][key]:.3f}" in card, (name, key)
    assert f"{figures['vae_psnr_db']:.2f} dB" in card


@pytest.mark.parametrize(
    ("name", "hint_of", "score", "margin"),
    [("canny", canny, edge_f1, 0.2), ("mask", mask, mask_iou, 0.1)],
)
def test_a_picture_follows_its_hint(pipeline, name, hint_of, score, margin) -> None:
    hint = hint_of(read_picture(tiny.EXAMPLE))

    def adherence(strength: float) -> float:
        control = Control(tiny.load_control(name), to_hint(hint), strength)
        (picture,) = pipeline(tiny.EXAMPLE_PROMPT, [control], SETTINGS)
        return score(hint_of(picture)[..., 0] > 127, hint[..., 0] > 127)

    assert adherence(1.0) > adherence(0.0) + margin


def test_an_empty_prompt_is_valid(pipeline) -> None:
    (picture,) = pipeline("", (), Settings(steps=1, width=64, height=64))
    assert picture.shape == (64, 64, 3)


def test_the_vae_keeps_colours() -> None:
    picture = torch.from_numpy(read_picture(tiny.EXAMPLE)).permute(2, 0, 1)[None] / 127.5 - 1
    vae = tiny.load_vae()
    with torch.no_grad():
        restored = vae.decode(vae.encode(picture))
    error = (restored - picture).mean(dim=(0, 2, 3)).abs()
    assert error.max() < 0.03


def test_previews_are_close_to_the_picture() -> None:
    rows, bias = tiny.latent_rgb()
    assert np.shape(rows) == (4, 3)
    assert np.shape(bias) == (3,)
    picture = torch.from_numpy(read_picture(tiny.EXAMPLE)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = tiny.load_vae().encode(picture) * tiny.scale_factor()
    preview = torch.einsum("bchw,cr->brhw", latents, torch.tensor(rows))
    preview += torch.tensor(bias).view(1, 3, 1, 1)
    small = torch.nn.functional.avg_pool2d(picture, 8)
    assert (preview - small).abs().mean() < 0.15


def test_unknown_parts_are_refused_by_name() -> None:
    with pytest.raises(CldmError, match="no part 'pose': choose unet, vae, text, canny, mask"):
        tiny.weights("pose")
