"""What the nodes need of the host, looked up when they are loaded.

A name that this version of the host lacks is told then, in one line, and not in the middle of a
sampling; nodes that can do without it are there all the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

CONTROL = (
    "comfy.controlnet.ControlBase",
    "comfy.controlnet.load_controlnet",
    "comfy.hooks.HookGroup",
    "comfy.hooks.TransformerOptionsHook",
    "comfy.ldm.modules.attention.optimized_attention",
    "comfy.model_management.get_torch_device",
    "comfy.model_management.load_models_gpu",
    "comfy.model_management.unet_dtype",
    "comfy.model_management.unet_manual_cast",
    "comfy.model_management.unet_offload_device",
    "comfy.model_patcher.ModelPatcher.add_callback_with_key",
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher.ModelPatcher.remove_callbacks_with_key",
    "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key",
    "comfy.model_patcher.ModelPatcher.set_additional_models",
    "comfy.ops.pick_operations",
    "comfy.patcher_extension.CallbacksMP.ON_CLEANUP",
    "comfy.patcher_extension.CallbacksMP.ON_PRE_RUN",
    "comfy.patcher_extension.WrappersMP.APPLY_MODEL",
    "comfy.patcher_extension.WrappersMP.CALC_COND_BATCH",
    "comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE",
    "comfy.utils.ProgressBar",
    "comfy.utils.weight_dtype",
    "folder_paths.get_filename_list",
    "folder_paths.get_full_path_or_raise",
)
"""For all nodes around control nets."""
EMBEDDED = (
    "comfy.clip_model.CLIPTextModel",
    "comfy.latent_formats.LatentFormat",
    "comfy.model_detection.detect_unet_config",
    "comfy.model_management.dtype_size",
    "comfy.model_management.get_torch_device",
    "comfy.model_management.unet_dtype",
    "comfy.model_management.unet_inital_load_device",
    "comfy.model_management.unet_manual_cast",
    "comfy.model_management.unet_offload_device",
    "comfy.model_management.vae_offload_device",
    "comfy.sd.CLIP",
    "comfy.sd.VAE",
    "comfy.sd1_clip.SD1ClipModel",
    "comfy.sd1_clip.SD1Tokenizer",
    "comfy.sd1_clip.SDClipModel",
    "comfy.sd1_clip.SDTokenizer",
    "comfy.supported_models_base.BASE",
    "comfy.supported_models_base.ClipTarget",
    "comfy.taesd.taesd.TAESD",
    "comfy.utils.calculate_parameters",
    "comfy.utils.weight_dtype",
)
"""For the embedded demo model."""
TRAINING = (
    "comfy.model_management.InterruptProcessingException",
    "comfy.model_management.interrupt_current_processing",
    "comfy.model_management.processing_interrupted",
    "comfy.model_management.soft_empty_cache",
    "comfy.model_management.unload_all_models",
    "comfy.model_sampling.EDM",
    "comfy.model_sampling.EPS",
    "comfy.model_sampling.V_PREDICTION",
    "comfy.model_sampling.X0",
    "comfy.samplers.calculate_sigmas",
    "folder_paths.get_input_directory",
    "folder_paths.get_output_directory",
)
"""For the nodes that train, beside those around control nets."""
ANNOTATORS_HOST = (
    "comfy.model_management.current_loaded_models",
    "comfy.model_management.free_memory",
    "comfy.model_management.minimum_inference_memory",
    "comfy.model_management.soft_empty_cache",
    "comfy.model_management.throw_exception_if_processing_interrupted",
    "comfy.model_management.unload_all_models",
    "comfy.utils.ProgressBar.update_absolute",
    "folder_paths.add_model_folder_path",
    "folder_paths.get_folder_paths",
    "folder_paths.models_dir",
)
"""For what joins annotators to the host; without it they work, but by themselves."""


def lacking(names: Iterable[str]) -> list[str]:
    """Those of the names, a module's path and attributes behind it, that aren't there."""
    return [name for name in names if not _exists(name)]


def _exists(name: str) -> bool:
    path, attributes = name, []
    while path:
        try:
            found: object = importlib.import_module(path)
        except ImportError:
            path, _, last = path.rpartition(".")
            attributes.insert(0, last)
            continue
        for attribute in attributes:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def complaint(names: list[str], what: str) -> str:
    """The line that says what is missing and what follows from it."""
    return (
        f"This version of ComfyUI lacks {', '.join(names)}: {what} left out, all other nodes of "
        f"ComfyUI-CLDM work. Update ComfyUI (0.3.64 or later), or this pack."
    )
