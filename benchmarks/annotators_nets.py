"""Seeded weights of every network that `annotators.py` runs, at the public size, as files.

Drawn at random by name and of such a size that values neither vanish nor explode; written as the
public files are, so that the loaders of both sides read them.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]

LINE_NETS = {
    "hed": "HED",
    "pidinet": "PiDiNet",
    "teed": "TEED",
    "lineart": "Lineart",
    "lineart_anime": "LineartAnime",
    "manga_line": "MangaLine",
    "mlsd": "MLSD",
}
"""The classes in annotators.nets of the same name."""
GAINS = {"pidinet": 0.78, "manga_line": 0.55, "openpose": 0.1}
"""Smaller weights where a deep net would explode; OpenPose is to find nobody, on either side."""
VIT_SIZES = {
    "small": (384, 12, 64, (48, 96, 192, 384)),
    "base": (768, 12, 128, (96, 192, 384, 768)),
    "large": (1024, 24, 256, (256, 512, 1024, 1024)),
}
"""Of Depth Anything: width, blocks, and channels of the head."""


def write(annotator: Any, settings: Mapping[str, Any], folder: Path) -> dict[Any, Path]:
    """The files that an annotator (a record) needs with these settings, by their own records."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for weights, shapes in needed(annotator, settings).items():
        paths[weights] = path = folder / weights.name
        tensors = seeded(shapes, GAINS.get(annotator.name, 1.0))
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, path)
        else:
            torch.save(wrapped(annotator.name, tensors), path)
    if annotator.name == "zoe":
        # controlnet-aux has other names for its weights: it keeps those that it draws itself.
        torch.save({"model": {}}, folder / "ZoeD_M12_N.pt")
    if annotator.name == "lineart":
        # controlnet-aux loads both of its networks always.
        (folder / "sk_model2.pth").symlink_to(folder / "sk_model.pth")
    if annotator.name == "openpose":
        for weights, shapes in parts_of_pose(annotator).items():
            torch.save(seeded(shapes, 1.0), folder / weights.name)
    return paths


def needed(annotator: Any, settings: Mapping[str, Any]) -> dict[Any, Shapes]:
    """Names and shapes of the weights, by their records."""
    name, first = annotator.name, annotator.weights[0]
    if name in LINE_NETS:
        return {first: shapes_of(getattr(net_module(name), LINE_NETS[name]))}
    if name in ("midas", "midas_normal"):
        return {first: midas()}
    if name == "normal_bae":
        return {first: shapes_of(net_module("normal_bae").NormalBae)}
    if name == "openpose":
        return {first: shapes_of(net_module("openpose").BodyNet)}
    if name == "segments":
        return {first: segments()}
    chosen = settings.get("model", annotator.settings["model"].default)
    number = annotator.settings["model"].choices.index(chosen)
    shapes = zoe(2 - number) if name == "zoe" else depth_anything(*VIT_SIZES[chosen])
    return {annotator.weights[number]: shapes}


def parts_of_pose(annotator: Any) -> dict[Any, Shapes]:
    """Of OpenPose's other networks, which controlnet-aux loads always."""
    nets = net_module("openpose")
    _, hand, face = annotator.weights
    return {
        hand: shapes_of(partial(nets.PartNet, nets.HAND_MAPS)),
        face: shapes_of(partial(nets.PartNet, nets.FACE_MAPS)),
    }


def wrapped(name: str, tensors: Tensors) -> Mapping[str, Any]:
    """As the public file has them."""
    if name == "pidinet":
        return {"state_dict": {f"module.{key}": value for key, value in tensors.items()}}
    return {"model": tensors} if name == "normal_bae" else tensors


def seeded(shapes: Shapes, gain: float) -> Tensors:
    """Weights by name and shape."""
    return {name: _drawn(name, shape, gain) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], gain: float) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return values.square() + 0.5
    if name == "norm":
        return values * 10 + 120
    if len(shape) > 1:
        return values * (gain * (2 / max(1, values[0].numel())) ** 0.5)
    return values * 0.1 + (1.0 if name.endswith(("weight", "gamma", "lambda1")) else 0.0)


def net_module(name: str) -> Any:
    return importlib.import_module(f"annotators.nets.{name}")


def shapes_of(net: Callable[[], torch.nn.Module]) -> Shapes:
    """Of all weights of what `net()` builds."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in net().state_dict().items()}


def midas() -> Shapes:
    """DPT-Hybrid, and what its file holds besides."""
    shapes = shapes_of(net_module("dpt_hybrid").DptHybrid)
    shapes |= layer("pretrained.model.head", 1000, 768) | layer("pretrained.model.norm", 768)
    for part in ("conv1", "conv2"):
        shapes |= layer(f"scratch.refinenet4.resConfUnit1.{part}", 256, 256, 3, 3)
    return shapes


def depth_anything(width: int, blocks: int, fused: int, sizes: tuple[int, ...]) -> Shapes:
    """Under the authors' names."""
    shapes: Shapes = {
        "pretrained.cls_token": (1, 1, width),
        "pretrained.pos_embed": (1, 37 * 37 + 1, width),
        "pretrained.mask_token": (1, width),
        **layer("pretrained.patch_embed.proj", width, 3, 14, 14),
        **layer("pretrained.norm", width),
    }
    for number in range(blocks):
        block = f"pretrained.blocks.{number}."
        shapes |= layer(f"{block}norm1", width) | layer(f"{block}norm2", width)
        shapes |= layer(f"{block}attn.qkv", 3 * width, width)
        shapes |= layer(f"{block}attn.proj", width, width)
        shapes |= layer(f"{block}mlp.fc1", 4 * width, width)
        shapes |= layer(f"{block}mlp.fc2", width, 4 * width)
        shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
    head = "depth_head."
    for level, size in enumerate(sizes):
        shapes |= layer(f"{head}projects.{level}", size, width, 1, 1)
        if level != 2:
            kernel = (4, 2, 0, 3)[level]
            shapes |= layer(f"{head}resize_layers.{level}", size, size, kernel, kernel)
        shapes[f"{head}scratch.layer{level + 1}_rn.weight"] = (fused, size, 3, 3)
        unit = f"{head}scratch.refinenet{level + 1}."
        shapes |= layer(f"{unit}out_conv", fused, fused, 1, 1)
        for number in (1, 2):
            for part in ("conv1", "conv2"):
                shapes |= layer(f"{unit}resConfUnit{number}.{part}", fused, fused, 3, 3)
    shapes |= layer(f"{head}scratch.output_conv1", fused // 2, fused, 3, 3)
    shapes |= layer(f"{head}scratch.output_conv2.0", 32, fused // 2, 3, 3)
    return shapes | layer(f"{head}scratch.output_conv2.2", 1, 32, 1, 1)


def segments() -> Shapes:
    """UperNet on ConvNeXt-S, with the head that its file has for training."""
    import transformers

    backbone = transformers.ConvNextConfig(
        depths=[3, 3, 27, 3],
        hidden_sizes=[96, 192, 384, 768],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=150,
        hidden_size=512,
        auxiliary_in_channels=384,
        auxiliary_channels=256,
    )
    return shapes_of(partial(transformers.UperNetForSemanticSegmentation, config))


def zoe(domains: int) -> Shapes:
    """ZoeDepth on BEiT-L, with one domain or two, under the names of the public files."""
    import transformers

    width, wide, blocks, grid = 1024, 4096, 24, 24
    chooser: dict[str, int] = {}
    if domains == 2:
        chooser = {
            "num_patch_transformer_layers": 4,
            "patch_transformer_hidden_size": 128,
            "patch_transformer_intermediate_size": 1024,
            "patch_transformer_num_attention_heads": 4,
        }
    backbone = transformers.BeitConfig(
        image_size=grid * 16,
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=wide,
        num_attention_heads=width // 64,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=["stage6", "stage12", "stage18", "stage24"],
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256,
        bottleneck_features=256,
        num_relative_features=32,
        bin_embedding_dim=128,
        bin_configurations=[
            {"name": name, "n_bins": 64, "min_depth": 1e-3, "max_depth": reach}
            for name, reach in (("nyu", 10.0), ("kitti", 80.0))[:domains]
        ],
        **chooser,
    )
    found = shapes_of(partial(transformers.ZoeDepthForDepthEstimation, config))
    shapes = {name: shape for name, shape in found.items() if not name.startswith("backbone.")}
    shapes["backbone.embeddings.cls_token"] = (1, 1, width)
    shapes |= layer("backbone.embeddings.patch_embeddings.projection", width, 3, 16, 16)
    for number in range(blocks):
        block = f"backbone.encoder.layer.{number}."
        inner = f"{block}attention.attention."
        shapes |= layer(f"{inner}query", width, width) | layer(f"{inner}value", width, width)
        shapes[f"{inner}key.weight"] = (width, width)
        table = f"{inner}relative_position_bias.relative_position_bias_table"
        shapes[table] = ((2 * grid - 1) ** 2 + 3, width // 64)
        shapes |= layer(f"{block}attention.output.dense", width, width)
        shapes |= layer(f"{block}intermediate.dense", wide, width)
        shapes |= layer(f"{block}output.dense", width, wide)
        shapes |= layer(f"{block}layernorm_before", width)
        shapes |= layer(f"{block}layernorm_after", width)
        shapes |= {f"{block}lambda_1": (width,), f"{block}lambda_2": (width,)}
    return shapes


def layer(name: str, *shape: int) -> Shapes:
    """The weight of a layer and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
