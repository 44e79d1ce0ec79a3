"""The picture of docs/applying.md: what each setting makes of one hint, prompt and seed.

Below them are batches that begin with the same noise, each with a setting for every picture.
"""

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
LATENT, SAMPLER = "EmptyLatentImage", "KSampler"
SHOWN = HINT, PICTURE = "PreviewImage", "SaveImage"
MASK = {
    "mask": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 128, "height": 128}},
    "edge": {
        "class_type": "FeatherMask",
        "inputs": {"mask": ["mask", 0], "left": 0, "top": 0, "right": 0, "bottom": 128},
    },
}
FACTORS = ("1", "0.6", "0.3", "0")
TURNS = ("none", "90 degrees", "180 degrees", "270 degrees")
SIDES = {"left": "left", "above": "top", "right": "right", "below": "bottom"}


@dataclass(frozen=True)
class Cell:
    """Labels, and what is changed: inputs of Apply and of Load, nodes that are added.

    labels: one, or those of the pictures of a batch.
    """

    labels: tuple[str, ...]
    apply: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    added: Prompt = field(default_factory=dict)

    def changed(self, prompt: Prompt) -> Prompt:
        """The prompt with what is changed."""
        changed = copy.deepcopy(prompt | self.added)
        for node in prompt:
            inputs = changed[node]["inputs"]
            kind = changed[node]["class_type"]
            inputs.update({APPLY: self.apply, LOAD: self.load}.get(kind, {}))
            if kind == LATENT:
                inputs["batch_size"] = len(self.labels)
            if kind == SAMPLER and len(self.labels) > 1:
                given = {"samples": inputs["latent_image"], "seed_behavior": "fixed"}
                changed["noise"] = {"class_type": "LatentBatchSeedBehavior", "inputs": given}
                inputs["latent_image"] = ["noise", 0]
        return changed


def options(kind: str, **inputs: Any) -> dict[str, Any]:
    """The node that Apply's options come from."""
    return {"options": {"class_type": f"CLDM_Control{kind}", "inputs": inputs}}


def weights(preset: str) -> dict[str, Any]:
    """Control Weights with a preset."""
    return options("Weights", curve="auto", preset=preset, weights="")


def turned() -> Prompt:
    """The hint turned by each of TURNS, as the batch `all`."""
    return batched(
        {
            turn: {"class_type": "ImageRotate", "inputs": {"image": HINT_OF, "rotation": turn}}
            for turn in TURNS
        }
    )


def masks() -> Prompt:
    """Masks that are black on one of SIDES each, as the batch `masks`."""
    found: Prompt = {"mask": MASK["mask"]}
    images: Prompt = {}
    for side in SIDES.values():
        edges = {each: 96 * (each == side) for each in SIDES.values()}
        edge = {"class_type": "FeatherMask", "inputs": {"mask": ["mask", 0], **edges}}
        found[f"{side} mask"] = edge
        images[side] = {"class_type": "MaskToImage", "inputs": {"mask": [f"{side} mask", 0]}}
    channel = {"image": ["all", 0], "channel": "red"}
    return found | batched(images) | {"masks": {"class_type": "ImageToMask", "inputs": channel}}


def batched(images: Prompt) -> Prompt:
    """Nodes that give a picture each, and those that put these behind each other as `all`."""
    found = dict(images)
    last, *others = images
    for name in others:
        joined = {"image1": [last, 0], "image2": [name, 0]}
        last = f"to {name}"
        found[last] = {"class_type": "ImageBatch", "inputs": joined}
    found["all"] = found.pop(last)
    return found


FROM_OPTIONS = {"options": ["options", 0]}
HINT_OF = ["4", 0]  # of first_picture
CELLS = (
    Cell(("balanced",)),
    Cell(("without control",), {"strength": 0.0}),
    Cell(("my prompt ...",), {"mode": "my prompt is more important"}),
    Cell(("ControlNet ...",), {"mode": "ControlNet is more important"}),
    Cell(("end_percent 0.5",), {"end_percent": 0.5}),
    Cell(("0: 1, 0.5: 1, 1: 0",), {"schedule": "0: 1, 0.5: 1, 1: 0"}),
    Cell(("mask, black below",), {"mask": ["edge", 0]}, added=MASK),
    Cell(("only early blocks",), FROM_OPTIONS, added=weights("only early blocks")),
    Cell(("only late blocks",), FROM_OPTIONS, added=weights("only late blocks")),
    Cell(("reuse 2",), FROM_OPTIONS, added=options("Speed", reuse=2)),
    Cell(("bf16",), load={"precision": "bf16"}),
    Cell(
        tuple(f"frames, {factor}" for factor in FACTORS),
        FROM_OPTIONS,
        added=options("Timing", unit="timesteps (ComfyUI)", frames=", ".join(FACTORS)),
    ),
    Cell(
        ("the hint", *(f"turned by {turn}" for turn in TURNS[1:])),
        {"image": ["all", 0]},
        added=turned(),
    ),
    Cell(
        tuple(f"mask, black {place}" for place in SIDES),
        {"mask": ["masks", 0]},
        added=masks(),
    ),
)


def write_settings_sheet(client: HostClient, prompt: Prompt, file: Path) -> None:
    """Run an API prompt with each of the settings, and put all pictures on one sheet."""
    cells = []
    for cell in CELLS:
        changed = cell.changed(prompt)
        result = client.queue(changed)
        if result.status != "success":
            raise SystemExit(f"{cell.labels[0]}: {result.message()}")
        shown = {
            changed[node]["class_type"]: client.images(result, node)
            for node in result.outputs
            if changed[node]["class_type"] in SHOWN
        }
        if not cells:
            cells.append(labelled("the hint", shown[HINT][0]))
        cells += map(labelled, cell.labels, shown[PICTURE])
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
    cv2.imwrite(str(file), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def labelled(label: str, picture: np.ndarray) -> np.ndarray:
    """A picture with its label above."""
    strip = np.full((LABEL, CELL, 3), 255, np.uint8)
    place = (8, LABEL - 8)
    cv2.putText(strip, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    size = (CELL, CELL)
    return np.vstack([strip, cv2.resize(picture[..., :3], size, interpolation=cv2.INTER_CUBIC)])
