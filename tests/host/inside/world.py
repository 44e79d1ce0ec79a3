"""What the cases that run inside a host share: small models, nets, files, and sampling."""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.controlnet
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models_base
import folder_paths
import torch
from safetensors.torch import save_file
from torch import Tensor

import nodes

ADM = 24
TEXT = 128
SD = {
    "num_res_blocks": [2] * 4,
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
}
XL = {
    "num_res_blocks": [2] * 3,
    "channel_mult": (1, 2, 4),
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [2, 2, 2, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 2,
    "adm_in_channels": ADM,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
}
WIDE = {
    "num_res_blocks": [1],
    "channel_mult": (1,),
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "adm_in_channels": ADM,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "model_channels": 320,
}
"""The host has union nets of this width only."""
COMMON = {
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "context_dim": TEXT,
    "use_temporal_resblock": False,
    "use_temporal_attention": False,
}
"""As comfy.model_detection writes them."""


class WithVector(comfy.model_base.BaseModel):
    """As SDXL's: a vector comes with the prompt."""

    def encode_adm(self, **kwargs: Any) -> Any:
        return kwargs.get("pooled_output")


class Small(comfy.supported_models_base.BASE):
    """A small base model in the host's own classes."""

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> Any:
        xl = self.unet_config["adm_in_channels"] is not None
        kind = WithVector if xl else comfy.model_base.BaseModel
        return kind(self, model_type=self.model_type(state_dict, prefix), device=device)


def randomised(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights of a size that keeps what they compute near 1, none of them zero."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(key: str, value: Tensor) -> Tensor:
        numbers = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            return numbers / value[0].numel() ** 0.5
        return numbers / 16 + key.endswith("weight")

    return {key: fresh(key, value) for key, value in state.items()}


def base_model(config: dict[str, Any], seed: int = 1, kind: type[Small] = Small) -> Any:
    """A MODEL with random weights."""
    described = kind({**COMMON, **config})
    described.set_inference_dtype(torch.float32, None)
    model = described.get_model({}, "", device=torch.device("cpu"))
    state = randomised(model.diffusion_model.state_dict(), seed)
    model.diffusion_model.load_state_dict(state)
    model.requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


class World:
    """The pack, three base models, and both ways through them."""

    def __init__(self, pack: Callable[[str], ModuleType]) -> None:
        torch.set_grad_enabled(False)
        self.pack = pack
        self.core = pack("cldm_core")
        self.files = pack("nodes.host.files")
        self.apply = pack("nodes.apply")
        self.demo = pack("nodes.host.embedded").load_model()
        self.sd = base_model(SD)
        self.xl = base_model(XL)
        self.wide = base_model(WIDE)
        self.folder = Path(folder_paths.get_folder_paths("controlnet")[0])
        self.folder.mkdir(parents=True, exist_ok=True)

    def unet(self, model: Any) -> Any:
        """The core's configuration of a MODEL."""
        return self.pack("nodes.host.checks").unet_config_of(model.model)

    def controlnet(self, model: Any, seed: int = 2) -> dict[str, Tensor]:
        """Random weights of a ControlNet for a MODEL."""
        config = self.core.ControlNetConfig(self.unet(model))
        return randomised(self.core.ControlNet(config).state_dict(), seed)

    def save(self, name: str, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
        path = self.folder / f"{name}.safetensors"
        save_file({k: v.to(dtype or v.dtype).contiguous() for k, v in state.items()}, path)
        return path

    def ours(self, path: Path, **settings: Any) -> Any:
        return self.files.load_control(path, **settings).control

    def theirs(self, path: Path, model: Any = None) -> Any:
        """The host's control; it finds the sizes of diffusers' files only among public models'."""
        detect = comfy.model_detection.unet_config_from_diffusers_unet
        vector = "add_embedding.linear_1.weight"

        def small(state: Any, dtype: Any = None) -> Any:
            base = self.xl if vector in state else self.demo
            if state["conv_in.weight"].shape[0] == WIDE["model_channels"]:
                base = self.wide
            return dict(base.model.model_config.unet_config)

        comfy.model_detection.unet_config_from_diffusers_unet = small
        try:
            return comfy.controlnet.load_controlnet(str(path), model)
        finally:
            comfy.model_detection.unet_config_from_diffusers_unet = detect

    def hint(self, height: int = 64, width: int = 64, seed: int = 5, batch: int = 1) -> Tensor:
        """A host's IMAGE."""
        return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))

    def prompts(self) -> tuple[Any, Any]:
        generator = torch.Generator().manual_seed(4)

        def prompt() -> Any:
            text = torch.randn(1, 7, TEXT, generator=generator)
            return [[text, {"pooled_output": torch.randn(1, ADM, generator=generator)}]]

        return prompt(), prompt()

    def with_ours(self, control: Any, hint: Tensor, *settings: float, prompts: Any = None) -> Any:
        """Both prompts behind our Apply node, with the hint fitted as the host fits it."""
        positive, negative = prompts or self.prompts()
        strength, start, end = settings or (1.0, 0.0, 1.0)
        return self.apply.ApplyControlNet.execute(
            positive, negative, control, hint, strength, start, end, fit="as ComfyUI"
        ).args

    def with_theirs(self, control: Any, hint: Tensor, *settings: float, prompts: Any = None) -> Any:
        """Both prompts behind the host's own Apply node."""
        positive, negative = prompts or self.prompts()
        return nodes.ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, control, hint, *(settings or (1.0, 0.0, 1.0))
        )

    def patched(self, model: Any, control: Any, hint: Tensor, *settings: float) -> Any:
        """The MODEL behind our Patch Model node."""
        strength, start, end = settings or (1.0, 0.0, 1.0)
        return self.apply.PatchModel.execute(
            model, control, hint, strength, start, end, fit="as ComfyUI"
        ).args[0]

    def sample(
        self,
        model: Any,
        prompts: Any = None,
        size: tuple[int, int] = (8, 8),
        batch: int = 1,
        steps: int = 3,
        callback: Any = None,
    ) -> Tensor:
        """Latents of the host's sampler."""
        positive, negative = prompts or self.prompts()
        latent = torch.zeros(batch, 4, *size)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(6))
        return comfy.sample.sample(
            model,
            noise,
            steps,
            3.0,
            "euler",
            "normal",
            positive,
            negative,
            latent,
            callback=callback,
            disable_pbar=True,
        )


def distance(first: Tensor, second: Tensor) -> float:
    """The largest difference, NaN and infinity included; 0 only where the two are equal."""
    if torch.equal(first, second):
        return 0.0
    found = float((first - second).abs().max())
    return found if found == found else float("inf")


def sentence(act: Callable[[], Any]) -> str:
    """The message of the error that `act` ends in, after its class; nothing where it does not."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def bytes_held() -> int:
    """The bytes of all tensors that Python knows, each memory counted once."""
    gc.collect()
    sizes = {}
    for thing in _tensors():
        storage = thing.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _tensors() -> Iterator[Tensor]:
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type == "cpu":
            yield thing


def count(kind: type) -> int:
    """How many objects of a class are alive."""
    gc.collect()
    return sum(issubclass(type(thing), kind) for thing in gc.get_objects())


def answers(world: World, cases: dict[str, Callable[[World], Any]]) -> dict[str, Any]:
    """What each case found; where one fails, the traceback instead."""
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case(world)
            json.dumps(found[name])
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    return found
