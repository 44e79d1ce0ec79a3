"""Texts on a node, for the user who looks at the graph."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show(text: str) -> None:
    """Shows a text on the node that is being executed; nothing where no server runs."""
    context = get_executing_context()
    # Importing the host's server would start a part of it where it isn't running.
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)
    if context is not None and instance is not None:
        instance.send_progress_text(text, context.node_id)
