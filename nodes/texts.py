"""What nodes show: where they are listed, and texts in them (web/show_text.js)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.v0_0_2 import io

CATEGORY = "ControlNet-CLDM"


def text_result(*outputs: Any, text: str, choice: str | None = None) -> io.NodeOutput:
    """A node's outputs and the text that it shows.

    choice: the file that the text is about; the editor drops the text where another one is chosen
    by then.
    """
    about = {} if choice is None else {"choice": [choice]}
    return io.NodeOutput(*outputs, ui={"text": [text], **about})


def shows_text() -> dict[str, Any]:
    """What the schema of a node with a text says besides.

    Newer hosts then send the text again where the node's result was known already.
    """
    known = {field.name for field in fields(io.Schema)}
    return {"has_intermediate_output": True} if "has_intermediate_output" in known else {}
