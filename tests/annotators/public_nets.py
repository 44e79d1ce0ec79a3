"""Names and shapes of the tensors in public files of weights, for networks of any size.

Of the tests' small networks, and of the benchmark's at the public size. Models of transformers are
built on the meta device, and named as the public files name their tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

Shapes = dict[str, tuple[int, ...]]
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def layer(name: str, *shape: int) -> Shapes:
    """The weight of a layer and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def shapes_of(net: Callable[..., nn.Module], *arguments: object) -> Shapes:
    """Of all tensors of what `net(*arguments)` builds."""
    with torch.device("meta"):
        return {key: tuple(one.shape) for key, one in net(*arguments).state_dict().items()}


class DepthAnything(NamedTuple):
    """Width and blocks; channels where the head's levels join, and of each; places a side."""

    width: int
    blocks: int
    fused: int
    levels: Sequence[int]
    grid: int = 37

    def shapes(self) -> Shapes:
        """Under the authors' names."""
        width, head = self.width, "depth_head."
        shapes: Shapes = {
            "pretrained.cls_token": (1, 1, width),
            "pretrained.pos_embed": (1, self.grid**2 + 1, width),
            "pretrained.mask_token": (1, width),
            **layer("pretrained.patch_embed.proj", width, 3, 14, 14),
            **layer("pretrained.norm", width),
        }
        for number in range(self.blocks):
            block = f"pretrained.blocks.{number}."
            shapes |= layer(f"{block}norm1", width) | layer(f"{block}norm2", width)
            shapes |= layer(f"{block}attn.qkv", 3 * width, width)
            shapes |= layer(f"{block}attn.proj", width, width)
            shapes |= layer(f"{block}mlp.fc1", 4 * width, width)
            shapes |= layer(f"{block}mlp.fc2", width, 4 * width)
            shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
        for level, size in enumerate(self.levels):
            shapes |= layer(f"{head}projects.{level}", size, width, 1, 1)
            if level != 2:
                kernel = (4, 2, 0, 3)[level]
                shapes |= layer(f"{head}resize_layers.{level}", size, size, kernel, kernel)
            shapes |= self._joined(f"{head}scratch.", level + 1, size)
        shapes |= layer(f"{head}scratch.output_conv1", self.fused // 2, self.fused, 3, 3)
        shapes |= layer(f"{head}scratch.output_conv2.0", 32, self.fused // 2, 3, 3)
        return shapes | layer(f"{head}scratch.output_conv2.2", 1, 32, 1, 1)

    def _joined(self, scratch: str, number: int, size: int) -> Shapes:
        unit, fused = f"{scratch}refinenet{number}.", self.fused
        shapes: Shapes = {f"{scratch}layer{number}_rn.weight": (fused, size, 3, 3)}
        shapes |= layer(f"{unit}out_conv", fused, fused, 1, 1)
        for one in (1, 2):
            for part in ("conv1", "conv2"):
                shapes |= layer(f"{unit}resConfUnit{one}.{part}", fused, fused, 3, 3)
        return shapes


DEPTH_ANYTHING = {
    "small": DepthAnything(384, 12, 64, (48, 96, 192, 384)),
    "base": DepthAnything(768, 12, 128, (96, 192, 384, 768)),
    "large": DepthAnything(1024, 24, 256, (256, 512, 1024, 1024)),
}


def midas_unused(width: int = 768, fused: int = 256, classes: int = 1000) -> Shapes:
    """What DPT-Hybrid's file holds besides the network."""
    shapes = layer("pretrained.model.head", classes, width) | layer("pretrained.model.norm", width)
    for part in ("conv1", "conv2"):
        shapes |= layer(f"scratch.refinenet4.resConfUnit1.{part}", fused, fused, 3, 3)
    return shapes


class Segments(NamedTuple):
    """UperNet on ConvNeXt: the stages' blocks and channels; the head's and the unused head's."""

    blocks: Sequence[int] = (3, 3, 27, 3)
    widths: Sequence[int] = (96, 192, 384, 768)
    head: int = 512
    unused: int = 256

    def shapes(self) -> Shapes:
        """With the head that the file has for training."""
        import transformers

        backbone = transformers.ConvNextConfig(
            depths=list(self.blocks), hidden_sizes=list(self.widths), out_features=STAGES
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone,
            num_labels=150,
            hidden_size=self.head,
            auxiliary_in_channels=self.widths[2],
            auxiliary_channels=self.unused,
        )
        return shapes_of(transformers.UperNetForSemanticSegmentation, config)


class Zoe(NamedTuple):
    """ZoeDepth on BEiT-L with one domain or two.

    Of BEiT width, inner width, blocks and places a side; of the neck the levels' channels; of the
    heads `fused` channels, `relative` ones for the nearness, and bins of `embedded` channels; the
    inner width of what chooses the domain.
    """

    domains: int = 2
    width: int = 1024
    wide: int = 4096
    blocks: int = 24
    grid: int = 24
    levels: Sequence[int] = (256, 512, 1024, 1024)
    fused: int = 256
    relative: int = 32
    embedded: int = 128
    bins: int = 64
    chooser: int = 1024

    def shapes(self) -> Shapes:
        """Under the names of the public files."""
        import transformers

        found = shapes_of(transformers.ZoeDepthForDepthEstimation, self._config(transformers))
        shapes = {name: one for name, one in found.items() if not name.startswith("backbone.")}
        width = self.width
        shapes["backbone.embeddings.cls_token"] = (1, 1, width)
        shapes |= layer("backbone.embeddings.patch_embeddings.projection", width, 3, 16, 16)
        for number in range(self.blocks):
            shapes |= self._block(f"backbone.encoder.layer.{number}.")
        return shapes

    def _config(self, transformers: Any) -> Any:
        chooser: dict[str, int] = {}
        if self.domains == 2:
            chooser = {
                "num_patch_transformer_layers": 4,
                "patch_transformer_hidden_size": 128,
                "patch_transformer_intermediate_size": self.chooser,
                "patch_transformer_num_attention_heads": 4,
            }
        backbone = transformers.BeitConfig(
            image_size=self.grid * 16,
            num_hidden_layers=self.blocks,
            hidden_size=self.width,
            intermediate_size=self.wide,
            num_attention_heads=self.width // 64,
            use_relative_position_bias=True,
            reshape_hidden_states=False,
            out_features=[f"stage{part * self.blocks // 4}" for part in (1, 2, 3, 4)],
        )
        return transformers.ZoeDepthConfig(
            backbone_config=backbone,
            neck_hidden_sizes=list(self.levels),
            fusion_hidden_size=self.fused,
            bottleneck_features=self.fused,
            num_relative_features=self.relative,
            bin_embedding_dim=self.embedded,
            bin_configurations=[
                {"name": name, "n_bins": self.bins, "min_depth": 1e-3, "max_depth": reach}
                for name, reach in (("nyu", 10.0), ("kitti", 80.0))[: self.domains]
            ],
            **chooser,
        )

    def _block(self, block: str) -> Shapes:
        inner, width = f"{block}attention.attention.", self.width
        table = f"{inner}relative_position_bias.relative_position_bias_table"
        return {
            **layer(f"{inner}query", width, width),
            **layer(f"{inner}value", width, width),
            f"{inner}key.weight": (width, width),
            table: ((2 * self.grid - 1) ** 2 + 3, width // 64),
            **layer(f"{block}attention.output.dense", width, width),
            **layer(f"{block}intermediate.dense", self.wide, width),
            **layer(f"{block}output.dense", width, self.wide),
            **layer(f"{block}layernorm_before", width),
            **layer(f"{block}layernorm_after", width),
            f"{block}lambda_1": (width,),
            f"{block}lambda_2": (width,),
        }


SWIN_NAMES = (
    ("encoder.swin.", "encoder."),
    ("attention.q_proj.", "attention.self.query."),
    ("attention.k_proj.", "attention.self.key."),
    ("attention.v_proj.", "attention.self.value."),
    ("attention.relative_position_bias.", "attention.self."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
"""What transformers 5 calls the parts of Swin, and what public files call them."""


class OneFormer(NamedTuple):
    """OneFormer on Swin: its classes and queries; then Swin's sizes; then channels and layers."""

    classes: int = 150
    queries: int = 250
    swin: int = 192
    blocks: Sequence[int] = (2, 2, 18, 2)
    heads: Sequence[int] = (6, 12, 24, 48)
    window: int = 12
    width: int = 256
    encoder: int = 6
    encoder_wide: int = 1024
    decoder: int = 10
    decoder_wide: int = 2048
    of_queries: int = 2

    def shapes(self) -> Shapes:
        """Under the public names, with what is for training only.

        Places inside a window (`relative_position_index`) are left out: newer versions of
        transformers compute them.
        """
        import transformers

        backbone = transformers.SwinConfig(
            embed_dim=self.swin,
            depths=list(self.blocks),
            num_heads=list(self.heads),
            window_size=self.window,
            out_features=STAGES,
        )
        config = transformers.OneFormerConfig(
            backbone_config=backbone,
            num_labels=self.classes,
            num_queries=self.queries,
            conv_dim=self.width,
            mask_dim=self.width,
            hidden_dim=self.width,
            encoder_layers=self.encoder,
            encoder_feedforward_dim=self.encoder_wide,
            decoder_layers=self.decoder,
            dim_feedforward=self.decoder_wide,
            query_dec_layers=self.of_queries,
        )
        shapes: Shapes = {
            "criterion.empty_weight": (self.classes + 1,),
            "model.text_mapper.prompt_ctx.weight": (16, self.width),
        }
        for name, shape in shapes_of(transformers.OneFormerModel, config).items():
            if ".swin.layernorm." in name or name.endswith("relative_position_index"):
                continue
            if name.startswith("pixel_level_module.encoder."):
                for ours, public in SWIN_NAMES:
                    name = name.replace(ours, public)
            shapes[f"model.{name}"] = shape
        return shapes
