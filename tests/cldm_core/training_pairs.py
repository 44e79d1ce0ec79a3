"""Small data sets of every format, and encoders whose results can be foretold."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from controlnet_pack.cldm_core.pictures import write_picture
from controlnet_pack.cldm_core.pipeline import Picture
from controlnet_pack.cldm_core.training.encoding import SizeCondition
from controlnet_pack.cldm_core.training.sources import ListedPairs, Source

SIDE = 64


def picture(number: int, height: int = SIDE, width: int = SIDE) -> Picture:
    """Another one for each number, smooth, and not the same mirrored."""
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    phase = number * 0.7
    planes = [
        columns / width * 180 + 40 * np.sin(rows / 9 + phase),
        rows / height * 150 + 60 * np.cos(columns / 7 + phase),
        (rows + columns) / (height + width) * 200 + 10 * (number % 5),
    ]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def line_hint(number: int, height: int = SIDE, width: int = SIDE) -> Picture:
    """White lines on black."""
    hint = np.zeros((height, width, 3), np.uint8)
    hint[(number * 7) % (height - 8) + 4, 4:-4] = 255
    hint[4:-4, (number * 5) % (width - 8) + 4] = 255
    return hint


def write_prompt_json(folder: Path, count: int) -> Path:
    lines = []
    for number in range(count):
        write_picture(picture(number), folder / "target" / f"{number}.png")
        write_picture(line_hint(number), folder / "source" / f"{number}.png")
        record = {
            "source": f"source/{number}.png",
            "target": f"target/{number}.png",
            "prompt": f"picture {number}",
        }
        lines.append(json.dumps(record))
    (folder / "prompt.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def unhinted(source: Source) -> ListedPairs:
    """The same pairs without their hints."""
    return ListedPairs([replace(source[index], hint=None) for index in range(len(source))])


class ToyEncoders:
    """Latents are averages over 8x8 pixels; embeddings are numbers made of the prompt's letters.

    y, where `sized`, holds the six numbers of the size. `pictures` and `prompts` count the calls.
    """

    def __init__(self, key: str = "toy", *, sized: bool = False) -> None:
        self.key, self.sized = key, sized
        self.pictures = 0
        self.prompts: list[str] = []

    def latents(self, pictures: Tensor) -> Tensor:
        self.pictures += len(pictures)
        small = avg_pool2d(pictures, 8)
        return torch.cat([small, small.mean(dim=1, keepdim=True)], dim=1)

    def texts(
        self, prompts: Sequence[str], sizes: Sequence[SizeCondition]
    ) -> tuple[Tensor, Tensor | None]:
        self.prompts += prompts
        rows = [[sum(map(ord, prompt)), len(prompt)] for prompt in prompts]
        context = torch.tensor(rows, dtype=torch.float32)[:, None].repeat(1, 3, 1)
        y = torch.tensor([size.numbers for size in sizes], dtype=torch.float32)
        return context, y if self.sized else None
