"""Seeded weights of small networks, made like the public ones: for tests without downloads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..cldm_core.seeded import seeded_state_dict, shapes_of
from .public_nets import DepthAnything, OneFormer, Segments, Zoe, layer, midas_unused

LEVELS = (8, 16, 24, 32)


def seeded_net(net: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of a module that may be on the meta device; see `seeded_tensors`."""
    return seeded_tensors(shapes_of(net), seed)


def seeded_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights by name and shape; the statistics of batch norms are made possible ones."""
    tensors = seeded_state_dict(shapes, seed)
    for name, value in tensors.items():
        if name.endswith("running_var"):
            tensors[name] = value.abs() * 5 + 0.5
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.zeros((), dtype=torch.int64)
    return tensors


def depth_anything(seed: int = 7) -> dict[str, Tensor]:
    """Depth Anything of width 128 with 8 blocks, trained on 56 px, under the authors' names."""
    sizes = DepthAnything(width=128, blocks=8, fused=16, levels=LEVELS, grid=4)
    return seeded_tensors(sizes.shapes(), seed)


def normal_bae(seed: int = 11) -> dict[str, Tensor]:
    """NormalBAE with an EfficientNet of one block a stage and at most 32 channels."""
    from controlnet_pack.annotators.nets.efficientnet import B5
    from controlnet_pack.annotators.nets.normal_bae import NormalBae

    stages = tuple(
        stage._replace(blocks=1, channels=8 * number) for number, stage in enumerate(B5, 1)
    )
    with torch.device("meta"):
        net = NormalBae(stages, 8, 32, (32, 24, 16, 8))
    return seeded_net(net, seed)


def midas(seed: int = 13) -> dict[str, Tensor]:
    """DPT-Hybrid of width 64 with 4 blocks, and what its file holds besides."""
    from controlnet_pack.annotators.nets.dpt_hybrid import DptHybrid, Sizes

    rows = ((1, 32, 32), (1, 32, 64), (1, 32, 96))
    with torch.device("meta"):
        net = DptHybrid(Sizes(32, rows, 64, 4, 16, 96, (32, 48), 16, 8))
    return seeded_tensors({**shapes_of(net), **midas_unused(64, 16, 10)}, seed)


def segments(seed: int = 17) -> dict[str, Tensor]:
    """UperNet on a ConvNeXt of 8 to 32 channels, with the head that its file has for training."""
    return seeded_tensors(Segments((1, 1, 2, 1), LEVELS, head=16, unused=8).shapes(), seed)


def zoe(domains: int = 2, seed: int = 19) -> dict[str, Tensor]:
    """ZoeDepth of width 64 with 4 blocks, under the names of the public files."""
    sizes = Zoe(
        domains=domains,
        width=64,
        wide=96,
        blocks=4,
        grid=2,
        levels=LEVELS,
        fused=16,
        relative=8,
        embedded=8,
        bins=8,
        chooser=32,
    )
    return seeded_tensors(sizes.shapes(), seed)


def uniformer(seed: int = 23) -> dict[str, Tensor]:
    """UniFormer with one block a stage, and the head that its file has for training."""
    from controlnet_pack.annotators.nets.uniformer import Segmenter, Sizes

    with torch.device("meta"):
        net = Segmenter(Sizes((1, 1, 1, 1), (8, 16, 64, 64), 16, 150))
    unused = layer("auxiliary_head.conv_seg", 150, 16, 1, 1)
    return seeded_tensors({**shapes_of(net), **unused}, seed)


def oneformer(classes: int = 150, seed: int = 29) -> dict[str, Tensor]:
    """OneFormer of 64 channels on a narrow Swin, and what its file holds besides."""
    sizes = OneFormer(
        classes=classes,
        queries=20,
        swin=8,
        blocks=(1, 1, 2, 1),
        heads=(1, 2, 2, 4),
        window=4,
        width=64,  # two a group of its norms, which one pixel needs
        encoder=2,
        encoder_wide=24,
        decoder=3,
        decoder_wide=40,
        of_queries=1,
    )
    tensors = seeded_tensors(sizes.shapes(), seed)
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        index = name.replace("bias_table", "index")
        tensors[index] = torch.zeros(16, 16, dtype=torch.int64)  # newer versions compute it
    return tensors
