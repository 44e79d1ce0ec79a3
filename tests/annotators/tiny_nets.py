"""Seeded weights of small networks, made like the public ones: for tests without downloads."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..cldm_core.seeded import seeded_state_dict, shapes_of


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
    width, fused, sizes = 128, 16, (8, 16, 24, 32)
    shapes: dict[str, tuple[int, ...]] = {
        "pretrained.cls_token": (1, 1, width),
        "pretrained.pos_embed": (1, 17, width),
        "pretrained.mask_token": (1, width),
        **_layer("pretrained.patch_embed.proj", width, 3, 14, 14),
        **_layer("pretrained.norm", width),
    }
    for number in range(8):
        block = f"pretrained.blocks.{number}."
        shapes |= _layer(f"{block}norm1", width) | _layer(f"{block}norm2", width)
        shapes |= _layer(f"{block}attn.qkv", 3 * width, width)
        shapes |= _layer(f"{block}attn.proj", width, width)
        shapes |= _layer(f"{block}mlp.fc1", 4 * width, width)
        shapes |= _layer(f"{block}mlp.fc2", width, 4 * width)
        shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
    head = "depth_head."
    for level, size in enumerate(sizes):
        shapes |= _layer(f"{head}projects.{level}", size, width, 1, 1)
        if level != 2:
            kernel = (4, 2, 0, 3)[level]
            shapes |= _layer(f"{head}resize_layers.{level}", size, size, kernel, kernel)
        shapes[f"{head}scratch.layer{level + 1}_rn.weight"] = (fused, size, 3, 3)
        unit = f"{head}scratch.refinenet{level + 1}."
        shapes |= _layer(f"{unit}out_conv", fused, fused, 1, 1)
        for part in ("resConfUnit1.conv1", "resConfUnit1.conv2"):
            shapes |= _layer(f"{unit}{part}", fused, fused, 3, 3)
            shapes |= _layer(f"{unit}{part.replace('Unit1', 'Unit2')}", fused, fused, 3, 3)
    shapes |= _layer(f"{head}scratch.output_conv1", fused // 2, fused, 3, 3)
    shapes |= _layer(f"{head}scratch.output_conv2.0", 32, fused // 2, 3, 3)
    shapes |= _layer(f"{head}scratch.output_conv2.2", 1, 32, 1, 1)
    return seeded_tensors(shapes, seed)


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


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
    unused = _layer("pretrained.model.head", 10, 64) | _layer("pretrained.model.norm", 64)
    for part in ("conv1", "conv2"):
        unused |= _layer(f"scratch.refinenet4.resConfUnit1.{part}", 16, 16, 3, 3)
    return seeded_tensors({**shapes_of(net), **unused}, seed)


def segments(seed: int = 17) -> dict[str, Tensor]:
    """UperNet on a ConvNeXt of 8 to 32 channels, with the head that its file has for training."""
    import transformers

    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 2, 1],
        hidden_sizes=[8, 16, 24, 32],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        num_labels=150,
        hidden_size=16,
        auxiliary_in_channels=24,
        auxiliary_channels=8,
    )
    return seeded_net(transformers.UperNetForSemanticSegmentation(config), seed)


def zoe(domains: int = 2, seed: int = 19) -> dict[str, Tensor]:
    """ZoeDepth of width 64 with 4 blocks, under the names of the public files."""
    import transformers

    chooser: dict[str, int] = {}
    if domains == 2:
        chooser = {
            "num_patch_transformer_layers": 4,
            "patch_transformer_hidden_size": 128,
            "patch_transformer_intermediate_size": 32,
            "patch_transformer_num_attention_heads": 4,
        }
    width, wide = 64, 96
    backbone = transformers.BeitConfig(
        image_size=32,
        num_hidden_layers=4,
        hidden_size=width,
        intermediate_size=wide,
        num_attention_heads=1,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=8,
        bin_configurations=[
            {"name": name, "n_bins": 8, "min_depth": 1e-3, "max_depth": reach}
            for name, reach in (("nyu", 10.0), ("kitti", 80.0))[:domains]
        ],
        **chooser,
    )
    net = transformers.ZoeDepthForDepthEstimation(config)
    shapes = {n: shape for n, shape in shapes_of(net).items() if not n.startswith("backbone.")}
    shapes["backbone.embeddings.cls_token"] = (1, 1, width)
    shapes |= _layer("backbone.embeddings.patch_embeddings.projection", width, 3, 16, 16)
    for number in range(4):
        block = f"backbone.encoder.layer.{number}."
        inner = f"{block}attention.attention."
        shapes |= _layer(f"{inner}query", width, width) | _layer(f"{inner}value", width, width)
        shapes[f"{inner}key.weight"] = (width, width)
        shapes[f"{inner}relative_position_bias.relative_position_bias_table"] = (3 * 3 + 3, 1)
        shapes |= _layer(f"{block}attention.output.dense", width, width)
        shapes |= _layer(f"{block}intermediate.dense", wide, width)
        shapes |= _layer(f"{block}output.dense", width, wide)
        shapes |= _layer(f"{block}layernorm_before", width)
        shapes |= _layer(f"{block}layernorm_after", width)
        shapes |= {f"{block}lambda_1": (width,), f"{block}lambda_2": (width,)}
    return seeded_tensors(shapes, seed)


def uniformer(seed: int = 23) -> dict[str, Tensor]:
    """UniFormer with one block a stage, and the head that its file has for training."""
    from controlnet_pack.annotators.nets.uniformer import Segmenter, Sizes

    with torch.device("meta"):
        net = Segmenter(Sizes((1, 1, 1, 1), (8, 16, 64, 64), 16, 150))
    unused = _layer("auxiliary_head.conv_seg", 150, 16, 1, 1)
    return seeded_tensors({**shapes_of(net), **unused}, seed)


# What transformers 5 calls the parts of Swin, and what public files call them.
_SWIN_NAMES = (
    ("encoder.swin.", "encoder."),
    ("attention.q_proj.", "attention.self.query."),
    ("attention.k_proj.", "attention.self.key."),
    ("attention.v_proj.", "attention.self.value."),
    ("attention.relative_position_bias.", "attention.self."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)


def oneformer(classes: int = 150, seed: int = 29) -> dict[str, Tensor]:
    """OneFormer of 64 channels on a narrow Swin, and what its file holds besides."""
    import transformers

    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.OneFormerConfig(
        backbone_config=backbone,
        num_labels=classes,
        num_queries=20,
        conv_dim=64,  # two a group of its norms, which one pixel needs
        mask_dim=64,
        hidden_dim=64,
        encoder_layers=2,
        encoder_feedforward_dim=24,
        decoder_layers=3,
        dim_feedforward=40,
        query_dec_layers=1,
    )
    shapes: dict[str, tuple[int, ...]] = {
        "criterion.empty_weight": (classes + 1,),
        "model.text_mapper.prompt_ctx.weight": (16, 64),
    }
    for name, shape in shapes_of(transformers.OneFormerModel(config)).items():
        if ".swin.layernorm." in name:
            continue
        if name.startswith("pixel_level_module.encoder."):
            for ours, public in _SWIN_NAMES:
                name = name.replace(ours, public)
        shapes[f"model.{name}"] = shape
    tensors = seeded_tensors(shapes, seed)
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        index = name.replace("bias_table", "index")
        tensors[index] = torch.zeros(16, 16, dtype=torch.int64)  # newer versions compute it
    return tensors
