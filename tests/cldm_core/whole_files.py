"""Models of diffusers and transformers under the names of whole checkpoints."""

import re
from collections.abc import Sequence

from torch import Tensor, cat

from controlnet_pack.cldm_core.single_file import VAE_PREFIX
from controlnet_pack.cldm_core.tiny import text

# diffusers' names to the original's, applied one after the other.
VAE_NAMES = [
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


def original_vae(vae) -> dict[str, Tensor]:
    """An AutoencoderKL as `first_stage_model`."""
    last = len(vae.config.block_out_channels) - 1
    state = {}
    for key, value in vae.state_dict().items():
        for pattern, name in VAE_NAMES:
            key = re.sub(pattern, name, key)
        # The original counts the decoder's levels by their size, smallest number at the picture.
        key = re.sub(r"\bup\.(\d+)", lambda found: f"up.{last - int(found[1])}", key)
        # The original's attention is made of 1x1 convolutions.
        is_projection = ".attn_1." in key and "norm" not in key and value.ndim == 2
        state[VAE_PREFIX + key] = value[..., None, None] if is_projection else value
    return state


def open_clip(model, prefix: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """These layers of a text encoder as OpenCLIP names them, with the projection if there is one.

    A layer may be given twice.
    """
    state = {key.removeprefix("text_model."): value for key, value in public(model).items()}
    names = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for number, layer in enumerate(layers):
        source, target = f"encoder.layers.{layer}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            attention = [state[f"{source}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            names[f"{target}attn.in_proj_{kind}"] = cat(attention)
            names[f"{target}attn.out_proj.{kind}"] = state[f"{source}self_attn.out_proj.{kind}"]
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                                 ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                names[f"{target}{theirs}.{kind}"] = state[f"{source}{ours}.{kind}"]
    if "text_projection.weight" in state:
        # OpenCLIP multiplies by it from the right.
        names["text_projection"] = state["text_projection.weight"].T
    return {prefix + key: value for key, value in names.items()}


def public(model) -> dict[str, Tensor]:
    """A text encoder under the names of public checkpoints."""
    return text.public_names(model)
