"""A small state dict of every kind of file, made by the nets and libraries that write them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import TINY, ControlNet, ControlNetConfig, UNetConfig
from controlnet_pack.cldm_core.checkpoint.keymap import to_diffusers
from controlnet_pack.cldm_core.lllite import ControlLLLite, LLLiteConfig, LLLiteModuleConfig
from controlnet_pack.cldm_core.t2i_adapter import AdapterConfig, T2IAdapter
from controlnet_pack.cldm_core.union import UnionConfig, UnionControlNet

State = dict[str, Tensor]

NARROW = {"block_out_channels": (32, 64), "cross_attention_dim": 16, "layers_per_block": 1}
SMALL_CHANNELS = (32, 64, 64, 64)
UNETS: dict[str, UNetConfig] = {
    "small": TINY,
    "8 heads": replace(TINY, context_dim=768, num_heads=8, num_head_channels=-1),
    "linear projections": replace(TINY, use_linear_in_transformer=True),
    "vector": replace(
        TINY,
        adm_in_channels=24,
        transformer_depth=(0, 2, 3),
        transformer_depth_middle=3,
        transformer_depth_output=(3, 3, 2, 2, 0, 0),
        use_linear_in_transformer=True,
    ),
    "no transformers": replace(
        TINY,
        adm_in_channels=24,
        transformer_depth=(0, 0, 0),
        transformer_depth_middle=-1,
        transformer_depth_output=(0,) * 6,
        context_dim=None,
    ),
    "two blocks": replace(
        TINY,
        num_res_blocks=(2, 2, 2),
        transformer_depth=(0, 0, 2, 2, 1, 1),
        transformer_depth_middle=-1,
        transformer_depth_output=(1, 1, 1, 2, 2, 2, 0, 0, 0),
    ),
}


def filled(module: nn.Module) -> State:
    """The module's weights, none of them zero."""
    torch.manual_seed(7)
    return {key: torch.randn(value.shape) / 8 + 0.5 for key, value in module.state_dict().items()}


def controlnet(config: UNetConfig = TINY, hint_channels: int = 3) -> State:
    return filled(ControlNet(ControlNetConfig(config, hint_channels)))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def union(types: int) -> State:
    return filled(UnionControlNet(UnionConfig(ControlNetConfig(TINY), types)))


def adapter(**changes: Any) -> State:
    return filled(T2IAdapter(AdapterConfig(**{"channels": SMALL_CHANNELS, **changes})))


def diffusers_adapter(**changes: Any) -> State:
    options = {"channels": SMALL_CHANNELS, "num_res_blocks": 2, "downscale_factor": 8}
    return filled(diffusers.T2IAdapter(**{**options, **changes}))


def lllite(*blocks: str, depth: int = 1) -> State:
    parts = tuple(
        LLLiteModuleConfig(f"{block}.1.transformer_blocks.0.attn1.to_q", 64, depth, 32, 16)
        for block in blocks
    )
    return filled(ControlLLLite(LLLiteConfig(parts)))


def control_lora(config: UNetConfig = TINY) -> State:
    """As Stability AI's: matrices and kernels of rank 4, the rest whole."""
    state: State = {"lora_controlnet": torch.zeros(0)}
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    for key, value in controlnet(config).items():
        path, _, name = key.rpartition(".")
        if value.ndim > 1 and not key.startswith(own):
            state[f"{path}.up"] = torch.randn(value.shape[0], 4) / 8
            state[f"{path}.down"] = torch.randn(4, *value.shape[1:]) / 8
        else:
            state[f"{path}.{name}"] = value
    return state


def difference() -> State:
    return {"difference": torch.ones(()), **prefixed("control_model.", controlnet())}


FRAMEWORKS = (
    "module.",
    "controlnet.",
    "control_net.",
    "net.",
    "model.",
    "_orig_mod.",
    "module.control_model.",
    "module._orig_mod.",
    "model.controlnet.",
)
"""What training frameworks put before all keys."""

LOADED: dict[str, dict[str, Callable[[], State]]] = {
    "cldm": {
        **{name: (lambda c=config: controlnet(c)) for name, config in UNETS.items()},
        "one hint channel": lambda: controlnet(hint_channels=1),
        "prefix": lambda: prefixed("control_model.", controlnet()),
    },
    "diffusers": {
        name: (lambda c=config: to_diffusers(controlnet(c))) for name, config in UNETS.items()
    },
    "union": {
        "6 types": lambda: union(6),
        "8 types": lambda: union(8),
        "diffusers": lambda: to_diffusers(union(8)),
    },
    "t2i_adapter": {
        "full": adapter,
        "one channel": lambda: adapter(hint_channels=1),
        "convolutions": lambda: adapter(use_conv=True, kernel_size=3),
        "light": lambda: adapter(kind="light", num_res_blocks=4),
        "xl": lambda: adapter(kind="xl"),
        "diffusers": lambda: diffusers_adapter(adapter_type="full_adapter"),
        "diffusers light": lambda: diffusers_adapter(adapter_type="light_adapter"),
        "diffusers xl": lambda: diffusers_adapter(
            adapter_type="full_adapter_xl", downscale_factor=16
        ),
    },
    "lllite": {
        "sd": lambda: lllite("input_blocks.1", "middle_block"),
        "xl": lambda: lllite("input_blocks.4", "middle_block", depth=2),
        "deep": lambda: lllite("input_blocks.7", depth=3),
    },
    "control_lora": {"rank 4": control_lora},
    "difference": {"whole": difference},
}
"""Of each format that this pack loads: variants, by what is special with them."""

OTHERS: dict[str, Callable[[], State]] = {
    "controlnet_xs": lambda: filled(
        diffusers.ControlNetXSAdapter(
            block_out_channels=(8, 8),
            base_block_out_channels=(32, 64),
            num_attention_heads=2,
            cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            max_norm_num_groups=4,
        )
    ),
    "sparsectrl": lambda: filled(
        diffusers.SparseControlNetModel(
            **NARROW,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            attention_head_dim=8,
            norm_num_groups=32,
        )
    ),
    "ctrlora": lambda: {
        **controlnet(),
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_layer.up.weight": torch.ones(1),
    },
    "svd_controlnet": lambda: {
        **to_diffusers(controlnet()),
        "down_blocks.0.resnets.0.temporal_res_block.norm1.weight": torch.ones(1),
    },
    "style_adapter": lambda: keyed("style_embedding", "ln_post.weight", "proj"),
    "lllite_dit": lambda: keyed(
        "lllite_conditioning1.conv1.weight", "lllite_dit_blocks_0_self_attn_q_proj.down.0.weight"
    ),
    "hunyuan_dit": lambda: keyed("after_proj_list.18.bias"),
    "flux_xlabs": lambda: keyed(
        "controlnet_blocks.0.weight", "double_blocks.0.img_attn.norm.key_norm.scale"
    ),
    "flux_mistoline": lambda: keyed("controlnet_blocks.0.linear.weight"),
    "flux": lambda: keyed("controlnet_blocks.0.weight", "controlnet_x_embedder.weight"),
    "sd3": lambda: filled(
        diffusers.SD3ControlNetModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=4,
            caption_projection_dim=8,
            pooled_projection_dim=4,
            pos_embed_max_size=4,
        )
    ),
    "sd35": lambda: keyed(
        "controlnet_blocks.0.weight",
        "pos_embed_input.proj.weight",
        "transformer_blocks.0.adaLN_modulation.1.bias",
    ),
    "qwen": lambda: filled(
        diffusers.QwenImageControlNetModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=4,
            axes_dims_rope=(2, 2, 4),
        )
    ),
    "qwen_fun": lambda: keyed("control_blocks.0.after_proj.weight", "control_img_in.weight"),
    "cascade": lambda: keyed("backbone.0.0.weight"),
    "base_model": lambda: keyed(
        "input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight", "out.2.weight"
    ),
    "lora": lambda: keyed("lora_unet_down_blocks_0.lora_down.weight"),
    "lora of old diffusers": lambda: keyed(
        "down_blocks.0.attentions.0.processor.to_q_lora.down.weight",
        "down_blocks.0.attentions.0.processor.to_q_lora.up.weight",
    ),
    "lycoris": lambda: keyed("lora_unet_down_blocks_0.hada_w1_a", "lora_unet_mid.hada_w2_a"),
    "lycoris lokr": lambda: keyed("lora_unet_down_blocks_0.lokr_w1", "lora_unet_mid.lokr_w2"),
    "ctrlora_base": lambda: {
        key: value for key, value in controlnet().items() if "input_hint_block" not in key
    },
    "unicontrol": lambda: {**controlnet(), **keyed("task_id_hypernet.0.weight")},
    "brushnet": lambda: {
        **filled(
            diffusers.UNet2DConditionModel(
                **NARROW,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=8,
            )
        ),
        **keyed("conv_in_condition.weight", "brushnet_down_blocks.0.weight"),
    },
    "kolors": lambda: filled(
        diffusers.ControlNetModel(
            **NARROW,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            attention_head_dim=8,
            encoder_hid_dim=24,
            encoder_hid_dim_type="text_proj",
        )
    ),
    "coadapter_fuser": lambda: keyed(
        "task_embedding", "positional_embedding", "spatial_feat_mapping.0.1.weight", "ln_pre.weight"
    ),
    "clip_vision": lambda: keyed(
        "vision_model.embeddings.class_embedding", "visual_projection.weight"
    ),
    "ip_adapter": lambda: keyed("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
}
"""A file of each other format that is known; by its few deciding keys where no library makes it.

The first word is the format's name.
"""


def keyed(*keys: str) -> State:
    return {key: torch.ones(1) for key in keys}
