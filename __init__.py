"""ControlNet for ComfyUI, whole. The host calls `comfy_entrypoint` to get the nodes.

Nothing else is imported before that call, so that the pack can be imported without the host.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

WEB_DIRECTORY = "./web"

if TYPE_CHECKING:
    from .nodes import Extension


async def comfy_entrypoint() -> Extension:
    """The extension with all nodes of the pack."""
    try:
        from .nodes import Extension
    except Exception as error:
        # The host tells of a failing entry point in one line, without the traceback.
        if isinstance(error, ImportError) and (error.name or "").startswith("comfy_api"):
            raise ImportError(
                f"This version of ComfyUI lacks what all nodes of ComfyUI-CLDM are made with "
                f"({error}): update ComfyUI (0.3.64 or later)."
            ) from None
        logging.getLogger("ComfyUI-CLDM").exception("The nodes of ComfyUI-CLDM did not load.")
        raise
    return Extension()
