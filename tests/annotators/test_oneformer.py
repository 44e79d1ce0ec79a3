"""Segments by OneFormer: its public names, the classes of pixels, and their colours."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from controlnet_pack.annotators import AnnotatorError, annotate
from controlnet_pack.annotators._oneformer import MODELS
from controlnet_pack.annotators.nets import oneformer as nets
from controlnet_pack.annotators.palettes import ade20k, coco

from ..cldm_core.seeded import seeded_tensor
from . import tiny_nets
from .pictures import picture

GOLDEN = json.loads((Path(__file__).parent / "data" / "segments.json").read_text())["oneformer"]
CLASSES = {"ade20k": 150, "ade20k-tiny": 150, "coco": 133}


def test_colours_are_the_references():
    assert coco().shape == (133, 3)
    assert hashlib.sha256(coco().tobytes()).hexdigest() == GOLDEN["coco"]
    assert hashlib.sha256(ade20k().tobytes()).hexdigest() == GOLDEN["ade20k"]


def test_classes_of_pixels_are_the_references():
    kinds = 4 * seeded_tensor((20, 134), "kinds", 5)
    masks = 4 * seeded_tensor((20, 12, 16), "masks", 5)
    found = nets.semantic(kinds, masks, (48, 64))
    expected = np.frombuffer(bytes.fromhex(GOLDEN["classes"]), np.uint8).reshape(48, 64)
    assert len(np.unique(expected)) > 5
    assert (found.argmax(0).numpy() == expected).mean() > 0.999
    assert found[:, 0, 0].tolist() == pytest.approx(GOLDEN["first"], rel=1e-5)


def test_sizes_are_read_from_the_file():
    config = nets.build(tiny_nets.oneformer(133)).config
    swin = config.backbone_config
    assert (swin.embed_dim, swin.depths, swin.window_size) == (8, [1, 1, 2, 1], 4)
    assert swin.num_heads == [1, 2, 2, 4]
    assert (config.num_labels, config.num_queries) == (133, 20)
    assert (config.conv_dim, config.mask_dim, config.hidden_dim) == (64, 64, 64)
    assert (config.encoder_layers, config.decoder_layers, config.query_dec_layers) == (2, 3, 1)
    assert (config.encoder_feedforward_dim, config.dim_feedforward) == (24, 40)
    assert config.task_seq_len == 77


def test_every_tensor_of_the_file_is_used():
    tensors = tiny_nets.oneformer()
    held = nets.build(tensors).state_dict()
    assert sums(held) == sums(tensors)
    name = "transformer_module.queries_embedder.weight"
    assert torch.equal(held[name], tensors[f"model.{name}"])


def sums(tensors: dict) -> list[float]:
    """Of what isn't for training only or made anew, in order."""
    names = (name for name in tensors if not name.startswith(nets.UNUSED))
    used = (tensors[name] for name in names if not name.endswith(nets.OPTIONAL))
    return sorted(value.double().sum().item() for value in used)


@pytest.mark.parametrize("model", CLASSES)
def test_hint_has_the_colour_of_each_pixels_class(give, model):
    tensors = tiny_nets.oneformer(CLASSES[model])
    give(MODELS[model], tensors)
    images = picture(2, 64, 96, 3)
    mean, deviation = torch.tensor(nets.MEAN), torch.tensor(nets.DEVIATION)
    pixels = ((torch.from_numpy(images).float() - mean) / deviation).permute(0, 3, 1, 2)
    task = torch.zeros(2, 77)
    task[:, :7] = torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407])
    with torch.no_grad():
        found = nets.build(tensors).eval()(pixel_values=pixels, task_inputs=task)
    kinds = found.transformer_decoder_class_predictions.softmax(-1)[..., :-1]
    masks = found.transformer_decoder_mask_predictions
    masks = F.interpolate(masks, (64, 96), mode="bilinear", align_corners=False).sigmoid()
    numbers = torch.einsum("nqc,nqhw->nchw", kinds, masks).argmax(1).numpy()
    palette = coco() if model == "coco" else ade20k()
    hint = annotate("oneformer", images, model=model, resolution=0, device="cpu")
    assert (hint == palette[numbers]).all(axis=-1).mean() > 0.999
    assert len(np.unique(numbers)) > 1


def test_odd_sizes_are_padded_with_the_mean_and_cut_back(give):
    give(MODELS["ade20k"], tiny_nets.oneformer())
    image = picture(37, 50, 3)
    hint = annotate("oneformer", image, resolution=0, device="cpu")
    assert hint.shape == image.shape
    wide = np.full((64, 64, 3), np.rint(nets.MEAN), np.uint8)
    wide[:37, :50] = image
    whole = annotate("oneformer", wide, resolution=0, device="cpu")[:37, :50]
    assert (hint == whole).all(axis=-1).mean() > 0.95  # the mean isn't whole grey levels


def test_another_file_is_refused():
    with pytest.raises(AnnotatorError, match="it isn't OneFormer's on Swin"):
        nets.build({"weight": torch.ones(1)})


def test_a_missing_tensor_is_named():
    tensors = tiny_nets.oneformer()
    del tensors["model.transformer_module.level_embed.weight"]
    with pytest.raises(AnnotatorError, match=r"lacks .*level_embed\.weight: another file"):
        nets.build(tensors)
