"""The picture of docs/applying.md: what each setting makes of one hint, prompt and seed."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .client import HostClient

Prompt = dict[str, Any]
CELL, LABEL, COLUMNS = 192, 26, 4
QUALITY = 90
APPLY, LOAD = "CLDM_ApplyControlNet", "CLDM_LoadControlNet"
SHOWN = HINT, PICTURE = "PreviewImage", "SaveImage"
MASK = {
    "mask": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}},
    "edge": {
        "class_type": "FeatherMask",
        "inputs": {"mask": ["mask", 0], "left": 0, "top": 0, "right": 0, "bottom": 128},
    },
}


@dataclass(frozen=True)
class Cell:
    """A label, and what is changed: inputs of Apply and of Load, nodes that are added."""

    label: str
    apply: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    added: dict[str, Any] = field(default_factory=dict)


def options(kind: str, **inputs: Any) -> dict[str, Any]:
    """The node that Apply's options come from."""
    return {"options": {"class_type": f"CLDM_Control{kind}", "inputs": inputs}}


def weights(preset: str) -> dict[str, Any]:
    """Control Weights with a preset."""
    return options("Weights", curve="auto", preset=preset, weights="")


FROM_OPTIONS = {"options": ["options", 0]}
CELLS = (
    Cell("balanced"),
    Cell("without control", {"strength": 0.0}),
    Cell("my prompt ...", {"mode": "my prompt is more important"}),
    Cell("ControlNet ...", {"mode": "ControlNet is more important"}),
    Cell("end_percent 0.5", {"end_percent": 0.5}),
    Cell("0: 1, 0.5: 1, 1: 0", {"schedule": "0: 1, 0.5: 1, 1: 0"}),
    Cell("mask, black below", {"mask": ["edge", 0]}, added=MASK),
    Cell("only early blocks", FROM_OPTIONS, added=weights("only early blocks")),
    Cell("only late blocks", FROM_OPTIONS, added=weights("only late blocks")),
    Cell("reuse 2", FROM_OPTIONS, added=options("Speed", reuse=2)),
    Cell("bf16", load={"precision": "bf16"}),
)


def write_settings_sheet(client: HostClient, prompt: Prompt, file: Path) -> None:
    """Run an API prompt with each of the settings, and put all pictures on one sheet."""
    cells = []
    for cell in CELLS:
        changed = copy.deepcopy(prompt) | cell.added
        for node in prompt:
            inputs = changed[node]["inputs"]
            inputs.update({APPLY: cell.apply, LOAD: cell.load}.get(changed[node]["class_type"], {}))
        result = client.queue(changed)
        if result.status != "success":
            raise SystemExit(f"{cell.label}: {result.message()}")
        shown = {
            changed[node]["class_type"]: client.images(result, node)[0]
            for node in result.outputs
            if changed[node]["class_type"] in SHOWN
        }
        if not cells:
            cells.append(labelled("the hint", shown[HINT]))
        cells.append(labelled(cell.label, shown[PICTURE]))
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    cv2.imwrite(str(file), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def labelled(label: str, picture: np.ndarray) -> np.ndarray:
    """A picture with its label above."""
    strip = np.full((LABEL, CELL, 3), 255, np.uint8)
    place = (8, LABEL - 8)
    cv2.putText(strip, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    size = (CELL, CELL)
    return np.vstack([strip, cv2.resize(picture[..., :3], size, interpolation=cv2.INTER_CUBIC)])
