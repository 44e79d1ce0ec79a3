"""The pack, loaded by a host that lacks names: what it logs, and which nodes there are."""

import asyncio
import importlib
import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import nodes

PACKAGE = pack().__name__  # noqa: F821  the runner gives it
FOLDER = str(Path(pack().__file__).parent)  # noqa: F821


@contextmanager
def without(*names):
    """The host without these: module, class if any, and the name in it."""
    kept = []
    for path in names:
        module, _, rest = path.partition(":")
        owner = importlib.import_module(module)
        *classes, name = rest.split(".")
        for each in classes:
            owner = getattr(owner, each)
        kept.append((owner, name, vars(owner)[name]))
        delattr(owner, name)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


def loaded():
    """The pack as the host loads it when it starts: lines of its log, and its nodes."""
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE.split(".")[0]]:
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            del sys.modules[name]
    for name in [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("CLDM_")]:
        del nodes.NODE_CLASS_MAPPINGS[name]
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = (logging.getLogger(), logging.getLogger("ComfyUI-CLDM"))  # ours hands on nothing
    for logger in loggers:
        logger.addHandler(handler)
    try:
        done = asyncio.run(nodes.load_custom_node(FOLDER, set(), module_parent="custom_nodes"))
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    found = sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("CLDM_"))
    return {"loaded": done, "lines": lines, "nodes": found}


LACKING = {
    "base": ("comfy.controlnet:ControlBase",),
    "wrapper": ("comfy.patcher_extension:WrappersMP.CALC_COND_BATCH",),
    "hook": ("comfy.hooks:TransformerOptionsHook",),
    "two": ("comfy.hooks:TransformerOptionsHook", "comfy.ops:pick_operations"),
    "method": ("comfy.model_patcher:ModelPatcher.set_additional_models",),
    "model": ("comfy.sd1_clip:SD1Tokenizer",),
}
found = {"nothing": loaded()}
for name, names in LACKING.items():
    with without(*names):
        found[name] = loaded()
kept, sys.modules["comfy_api.v0_0_2"] = sys.modules["comfy_api.v0_0_2"], None
found["interface"] = loaded()
sys.modules["comfy_api.v0_0_2"] = kept
found["again"] = loaded()
report(**found)  # noqa: F821
