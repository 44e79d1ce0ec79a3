"""The MODEL door: a control in a clone of the model, for every prompt."""

from __future__ import annotations

import uuid
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from .checks import check_model
from .control import HostControl
from .lazy import merged_late
from .residuals import HostResiduals
from .rows import row_wrappers


def patch_model(model: Any, control: HostControl) -> Any:
    """A clone of the MODEL with the control in it."""
    control.check_settings()
    check_model(control.net, model.model)
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
        options = dict(transformer_options)  # the control may add patches to it
        prompts = len(options.get("cond_or_uncond", [0]))
        call = {"c_crossattn": c_crossattn, **kwargs}
        own = control.get_control(x, t, call, prompts, options)
        call["control"] = merged_late(own, other)
        out: Tensor = executor(x, t, c_concat, c_crossattn, call["control"], options, **kwargs)
        return out

    def pre_run(patcher: Any) -> None:
        control.pre_run(patcher.model, patcher.model.model_sampling.percent_to_sigma)

    for kind, by_key in row_wrappers().items():
        for name, wrappers in by_key.items():
            patched.remove_wrappers_with_key(kind, name)  # of another control
            for wrapper in wrappers:
                patched.add_wrapper_with_key(kind, name, wrapper)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, apply)
    patched.set_additional_models(key, control.get_models())
    patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, key, pre_run)
    return patched
