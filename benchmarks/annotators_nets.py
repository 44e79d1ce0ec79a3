"""Seeded weights of every network that `annotators.py` runs, at the public size, as files.

Drawn at random by name and of such a size that values neither vanish nor explode; written as the
public files are, so that the loaders of both sides read them.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.annotators.public_nets import (
    DEPTH_ANYTHING,
    OneFormer,
    Segments,
    Shapes,
    Zoe,
    midas_unused,
    shapes_of,
)

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
UNIFORMER = ((3, 4, 8, 3), (64, 128, 320, 512), 512, 150)
ONEFORMERS = {
    "ade20k": OneFormer(),
    "ade20k-tiny": OneFormer(150, 150, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "coco": OneFormer(133, 150),
}


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
        return {first: shapes_of(net_module("dpt_hybrid").DptHybrid) | midas_unused()}
    if name == "normal_bae":
        return {first: shapes_of(net_module("normal_bae").NormalBae)}
    if name == "openpose":
        return {first: shapes_of(net_module("openpose").BodyNet)}
    if name == "segments":
        return {first: Segments().shapes()}
    if name == "uniformer":
        nets = net_module("uniformer")
        return {first: shapes_of(nets.Segmenter, nets.Sizes(*UNIFORMER))}
    chosen = settings.get("model", annotator.settings["model"].default)
    number = annotator.settings["model"].choices.index(chosen)
    return {annotator.weights[number]: of_model(name, chosen).shapes()}


def of_model(annotator: str, chosen: str) -> Any:
    """The public sizes of one of an annotator's models."""
    if annotator == "oneformer":
        return ONEFORMERS[chosen]
    return Zoe(1 if chosen == "nyu" else 2) if annotator == "zoe" else DEPTH_ANYTHING[chosen]


def parts_of_pose(annotator: Any) -> dict[Any, Shapes]:
    """Of OpenPose's other networks, which controlnet-aux loads always."""
    nets = net_module("openpose")
    _, hand, face = annotator.weights
    return {
        hand: shapes_of(nets.PartNet, nets.HAND_MAPS),
        face: shapes_of(nets.PartNet, nets.FACE_MAPS),
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
