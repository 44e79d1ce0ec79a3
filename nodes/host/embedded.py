"""The embedded model in the host's own classes: its MODEL, CLIP and VAE around our weights."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import comfy.clip_model
import comfy.latent_formats
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import torch
from torch import Tensor

from ...cldm_core import tiny
from ...cldm_core.checkpoint import read
from ...cldm_core.pictures import read_picture
from ...cldm_core.tiny.text import CONFIG, LENGTH
from ..images import to_image
from ..log import log

# Bytes for each pixel and byte of the number type, generously: the host only splits batches by it.
VAE_BYTES_PER_PIXEL = 300


class TinyLatent(comfy.latent_formats.LatentFormat):  # type: ignore[misc]
    """How the embedded model's latents are scaled, and their colours for previews."""

    def __init__(self) -> None:
        self.scale_factor = tiny.scale_factor()
        self.latent_rgb_factors, self.latent_rgb_factors_bias = tiny.latent_rgb()


class TinyModel(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """The host's description of the embedded UNet: heads of 64, SD's schedule, eps."""

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": 64}
    latent_format = TinyLatent
    memory_usage_factor = 1.0


def load_model() -> Any:
    """The embedded UNet as a MODEL."""
    state = dict(read(tiny.weights("unet")).tensors)
    device = comfy.model_management.get_torch_device()
    config = TinyModel(comfy.model_detection.detect_unet_config(state, ""))
    count = comfy.utils.calculate_parameters(state)
    dtype = comfy.model_management.unet_dtype(
        model_params=count,
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    cast = comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast)
    initial = comfy.model_management.unet_inital_load_device(count, dtype)
    model = config.get_model(state, "", device=initial)
    model.load_model_weights(state, "")
    # A model this small needs none of the newer hosts' streaming of weights.
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


class Tokens(comfy.sd1_clip.SDTokenizer):  # type: ignore[misc]
    """The host's prompt syntax over the embedded vocabulary."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Any = None, **_: Any
    ) -> None:
        super().__init__(
            tokenizer_path=str(tiny.WEIGHTS),
            max_length=LENGTH,
            embedding_directory=embedding_directory,
            embedding_size=CONFIG["hidden_size"],
            embedding_key="clip_l",
            tokenizer_data=tokenizer_data or {},
        )


class Tokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc]
    """The tokenizer object that the host's CLIP holds."""

    def __init__(
        self, embedding_directory: Any = None, tokenizer_data: Any = None, **_: Any
    ) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            tokenizer=Tokens,
        )


class TextModel(comfy.clip_model.CLIPTextModel):  # type: ignore[misc]
    """The host's CLIP text transformer, made for CLIP's own vocabulary, with ours."""

    def __init__(self, config: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(config, dtype, device, operations)
        self.set_input_embeddings(
            operations.Embedding(
                CONFIG["vocab_size"], CONFIG["hidden_size"], dtype=dtype, device=device
            )
        )


class Encoder(comfy.sd1_clip.SDClipModel):  # type: ignore[misc]
    """Token ids to embeddings, with the host's handling of weights and layers."""

    def __init__(
        self, device: Any = "cpu", dtype: Any = None, model_options: Any = None, **_: Any
    ) -> None:
        start, end = CONFIG["bos_token_id"], CONFIG["eos_token_id"]
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            max_length=LENGTH,
            textmodel_json_config=dict(CONFIG),
            model_class=TextModel,
            layer="last",
            special_tokens={"start": start, "end": end, "pad": end},
            return_projected_pooled=False,
        )


class TextStage(comfy.sd1_clip.SD1ClipModel):  # type: ignore[misc]
    """The text encoder object that the host's CLIP holds."""

    def __init__(
        self, device: Any = "cpu", dtype: Any = None, model_options: Any = None, **_: Any
    ) -> None:
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, clip_model=Encoder
        )


def load_clip() -> Any:
    """The embedded text encoder as a CLIP."""
    state = dict(read(tiny.weights("text")).tensors)
    # The host's class has a projection that this encoder lacks and nothing uses; identity keeps it
    # defined.
    state["text_projection.weight"] = torch.eye(
        CONFIG["hidden_size"], dtype=next(iter(state.values())).dtype
    )
    target = comfy.supported_models_base.ClipTarget(Tokenizer, TextStage)
    options = {"parameters": sum(tensor.numel() for tensor in state.values())}
    if "state_dict" in inspect.signature(comfy.sd.CLIP.__init__).parameters:
        # Newer hosts may put the weights in place while they build, and load the model at once.
        options["state_dict"] = [state]
    clip = comfy.sd.CLIP(target, **options)
    missing, unexpected = clip.load_sd(state)
    if missing or unexpected:
        log.warning(
            "The embedded text encoder: keys %s missing, %s unexpected.", missing, unexpected
        )
    return clip


def load_vae() -> Any:
    """The embedded autoencoder as a VAE.

    The host chooses a VAE's class by its keys, so an empty TAESD is made, with all attributes that
    this host's methods read, and its network exchanged.
    """
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    vae.working_dtypes = [torch.float32]
    vae.vae_dtype = torch.float32
    vae.memory_used_encode = lambda shape, dtype: _vae_bytes(shape[2] * shape[3], dtype)
    vae.memory_used_decode = lambda shape, dtype: _vae_bytes(shape[2] * shape[3] * 64, dtype)
    module = tiny.load_vae()
    vae.first_stage_model = module
    vae.patcher = comfy.model_patcher.ModelPatcher(
        module, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    if hasattr(vae, "size"):
        vae.size = None
        vae.model_size()
    return vae


def _vae_bytes(pixels: int, dtype: torch.dtype) -> int:
    size: int = comfy.model_management.dtype_size(dtype)
    return VAE_BYTES_PER_PIXEL * pixels * size


def example_picture() -> Tensor:
    """The picture that comes with the embedded model, as the host's IMAGE (1, 128, 128, 3)."""
    return to_image([read_picture(tiny.EXAMPLE)])
