"""The adapter: the only module that knows how the host loads, patches and frees things.

Written against ComfyUI 0.3.64 and 0.18.1; names that only some versions have are asked for where
they are used.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from seconohe.logger import initialize_logger
from torch import Tensor

from ..cldm_core import SD21, ControlNet, FamilyMismatch, Residuals, load_controlnet, weigh
from ..cldm_core.checkpoint import read
from ..cldm_core.config import UNetConfig

log = initialize_logger("ComfyUI-CLDM")

POOLED_NAMES = ("_shuffle", "_shuffle_fp16")
HostResiduals = dict[str, list[Tensor | None]]
SUPPORTED_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def controlnet_files() -> list[str]:
    """Names of the files in the host's `controlnet` folders."""
    names: list[str] = folder_paths.get_filename_list("controlnet")
    return names


def controlnet_path(name: str) -> Path:
    """The file of that name in the host's `controlnet` folders; the host's error if none is."""
    return Path(folder_paths.get_full_path_or_raise("controlnet", name))


class HostAttention:
    """The attention that the host was started with, looked up at each call: packs exchange it."""

    precision: torch.dtype | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor:
        mixed: Tensor = comfy.ldm.modules.attention.optimized_attention(
            q, k, v, heads, attn_precision=self.precision
        )
        return mixed


def load_control(path: Path) -> HostControl:
    """The ControlNet of a file as a CONTROL_NET, in types and layers by the host's own rules."""
    checkpoint = read(path)
    device = comfy.model_management.get_torch_device()
    stored = comfy.model_management.unet_dtype(
        model_params=-1,
        supported_dtypes=list(SUPPORTED_TYPES),
        weight_dtype=comfy.utils.weight_dtype(checkpoint.tensors),
    )
    cast = comfy.model_management.unet_manual_cast(stored, device)
    layers = comfy.ops.pick_operations(stored, cast)
    attention = HostAttention()
    net = load_controlnet(checkpoint, dtype=stored, ops=layers, attention=attention)
    if net.unet_config == SD21:
        # As in the host: half precision overflows in SD 2.x's attention.
        attention.precision = torch.float32
    if path.stem.endswith(POOLED_NAMES) and not checkpoint.metadata:
        # No key tells pooling; the host goes by the name, and so do the files that are about.
        net.config = replace(net.config, global_average_pooling=True)
        log.info("%s is named as a shuffle net: its residuals are averaged.", path.name)
    log.info("Loaded the ControlNet %s in %s.", path.name, stored)
    return HostControl(patcher_for(net.requires_grad_(False), device), cast or stored)


def patcher_for(module: torch.nn.Module, device: torch.device) -> Any:
    """The module under the host's memory management."""
    # Newer hosts re-bind the name at start to the class that fits the machine.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if hasattr(comfy.model_management, "archive_model_dtypes"):
        comfy.model_management.archive_model_dtypes(module)
    return patcher(
        module, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


class HostControl(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A CONTROL_NET: what the host's sampler asks for residuals, around a net of the core.

    Copies share the net and its patcher. What belongs to one sampling (hint features, the model's
    schedule) is set in `pre_run` and dropped when the sampling ends, also by an interrupt or an
    error.
    """

    def __init__(self, patcher: Any, compute_type: torch.dtype) -> None:
        super().__init__()
        self.patcher = patcher
        self.compute_type = compute_type
        self.model_sampling: Any = None
        self.features: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @property
    def net(self) -> ControlNet:
        net: ControlNet = self.patcher.model
        return net

    def copy(self) -> HostControl:
        """The same net with settings of its own; the host's apply nodes call this."""
        other = HostControl(self.patcher, self.compute_type)
        self.copy_to(other)
        return other

    def get_models(self) -> list[Any]:
        """What the host must have on the device before it samples."""
        return [*super().get_models(), self.patcher]

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step; refuses a model of another family."""
        check_family(self.net, model)
        super().pre_run(model, percent_to_timestep_function)
        self.features.clear()
        self.model_sampling = model.model_sampling
        self._cleanup_with(getattr(model, "current_patcher", None))

    def _cleanup_with(self, patcher: Any) -> None:
        """Has the sampled model call `_drop` when its sampling ends.

        The host calls `cleanup` at a normal end only. Hooks on the conditioning would do as well,
        but newer hosts then load the base model a second time.
        """
        if patcher is None:  # somebody samples without the host's sampler
            return
        key = f"controlnet_cldm_{id(self)}"

        def drop(cleaned: Any) -> None:
            cleaned.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
            self._drop()

        patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
        patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, drop)

    def _drop(self) -> None:
        super().cleanup()
        self.model_sampling = None
        self.features.clear()

    def cleanup(self) -> None:
        """Drops what belongs to one sampling."""
        self._drop()

    def get_control(
        self,
        x_noisy: Tensor,
        t: Tensor,
        cond: dict[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
    ) -> HostResiduals | None:
        """Residuals of this net and of those before it in the chain, in the host's form.

        x_noisy: (B, C, h, w), not yet scaled; t: the sigma of each row; cond: what the UNet gets
        besides.
        """
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(
                x_noisy, t, cond, batched_number, transformer_options
            )
        if (
            self.timestep_range is not None
            and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]
        ):
            return previous  # type: ignore[no-any-return]
        dtype = self.compute_type
        context = cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x_noisy.device, dtype)
        y = cond.get("y")
        residuals = self.net(
            self.model_sampling.calculate_input(t, x_noisy).to(dtype),
            self._features(x_noisy, batched_number),
            self.model_sampling.timestep(t).to(dtype),
            context,
            None if y is None else y.to(dtype),
        )
        return merged(to_host(weigh(residuals, self.strength)), previous)

    def _features(self, x: Tensor, batched_number: int) -> Tensor:
        """The encoded hints for latents x, computed once per sampling, size and hint."""
        hint = self.cond_hint_original
        height, width = (side * self.compression_ratio for side in x.shape[-2:])
        count = max(1, x.shape[0] // batched_number)  # the host uses as many hints as pictures
        key = (height, width, count, x.device)
        # Packs that work in tiles put another hint in between two steps.
        if key not in self.features or self.features[key][0] is not hint:
            fitted = comfy.utils.common_upscale(
                self._channels(hint[:count]), width, height, self.upscale_algorithm, "center"
            )
            encoded = self.net.encode_hint(fitted.to(x.device, self.compute_type))
            self.features[key] = (hint, encoded)
        features = self.features[key][1]
        if features.shape[0] == 1:
            return features
        spread: Tensor = comfy.controlnet.broadcast_image_to(features, x.shape[0], batched_number)
        return spread

    def _channels(self, hint: Tensor) -> Tensor:
        """A grey hint as RGB, and one with transparency without it."""
        wanted = self.net.config.hint_channels
        if hint.shape[1] == 1:
            return hint.expand(-1, wanted, -1, -1)
        return hint[:, :wanted]

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> HostControl:
        """A copy with a net of its own for another GPU, as hosts of late 2026 ask for."""
        other = HostControl(patcher_for(copy.deepcopy(self.net), load_device), self.compute_type)
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


def to_host(residuals: Residuals) -> HostResiduals:
    """The host's form: lists that its UNet empties from the end, in encoder order."""
    return {
        "input": list(residuals.input),
        "middle": list(residuals.middle),
        "output": list(residuals.output),
    }


def merged(control: HostResiduals | None, other: HostResiduals | None) -> HostResiduals | None:
    """The sum of two controls in the host's form; neither is changed."""
    if control is None or other is None:
        return other if control is None else control
    return {
        slot: _sums(control.get(slot, []), other.get(slot, []))
        for slot in ("input", "middle", "output")
    }


def _sums(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    # The host takes items from the end, so lists of different length are aligned there.
    length = max(len(first), len(second))
    a, b = ([None] * (length - len(items)) + items for items in (first, second))
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


SAME_FAMILY = "use a ControlNet of the same family (SD 1.5, SD 2.1, SDXL, ...) as the model."


def check_family(net: ControlNet, model: Any) -> None:
    """Raises FamilyMismatch, with what was found, where the net can't steer this base model."""
    config: UNetConfig = net.unet_config
    base = model.model_config.unet_config
    if "model_channels" not in base or base.get("use_temporal_attention"):
        raise FamilyMismatch(
            f"This model ({type(model).__name__}) is no picture UNet of the Stable Diffusion "
            f"family, and this ControlNet was made for one: {SAME_FAMILY}"
        )
    facts = {
        "text embeddings of width {}": (config.context_dim, base.get("context_dim")),
        "{} base channels": (config.model_channels, base["model_channels"]),
        "a size and pooled-text vector of {}": (
            config.adm_in_channels,
            base.get("adm_in_channels"),
        ),
    }
    for what, (expected, found) in facts.items():
        if expected is not None and expected != found:
            raise FamilyMismatch(
                f"This ControlNet was made for a base model with {what.format(expected)}, and "
                f"this model has {what.format(found)}: {SAME_FAMILY}"
            )


def check_conditioning(net: ControlNet, conditioning: list[Any]) -> None:
    """Raises FamilyMismatch where the prompts were encoded for another family than the net's."""
    expected = net.unet_config.context_dim
    for text, options in conditioning:
        # What the host's own node for separate ControlNet prompts leaves there.
        width = options.get("cross_attn_controlnet", text).shape[-1]
        if expected not in (None, width):
            raise FamilyMismatch(
                f"This ControlNet reads text embeddings {expected} wide, and this prompt's are "
                f"{width} wide: {SAME_FAMILY}"
            )


def patch_model(model: Any, control: HostControl) -> Any:
    """A clone of the MODEL with the control in it."""
    check_family(control.net, model.model)
    patched = model.clone()
    key = f"controlnet_cldm_{uuid.uuid4().hex}"

    def apply(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor,
        other: HostResiduals | None,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        rows = len(transformer_options.get("cond_or_uncond", [0]))
        own = control.get_control(
            x, t, {"c_crossattn": c_crossattn, **kwargs}, rows, transformer_options
        )
        out: Tensor = executor(
            x, t, c_concat, c_crossattn, merged(own, other), transformer_options, **kwargs
        )
        return out

    def pre_run(patcher: Any) -> None:
        control.pre_run(patcher.model, patcher.model.model_sampling.percent_to_sigma)

    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, apply)
    patched.set_additional_models(key, control.get_models())
    patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, pre_run)
    return patched
