"""Latents and hints of all training pictures in several placements, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .data import SIZE, Array, Emoji, placement, random_placement, render
from .stage_vae import pixels
from .vae import TinyVAE

VARIANTS = 8
SEED = 7

HintOf = Callable[[Array, Array], Array]
"""(picture (H, W, 3) in [0, 1], foreground (H, W) in [0, 1]) to a hint (H, W) of 0 and 255."""


@dataclass(frozen=True)
class Cache:
    """Unscaled latents (pictures, VARIANTS, 4, 16, 16), and the hints of the same pictures.

    hints: name to packed bits (pictures, VARIANTS, 128, 16) uint8. All are on one device.
    """

    latents: Tensor
    hints: Mapping[str, Tensor]

    @property
    def scale(self) -> float:
        """What gives the latents a deviation of 1 (Stable Diffusion's `scale_factor`)."""
        return 1 / float(self.latents.std())

    def to(self, device: torch.device) -> Cache:
        hints = {name: bits.to(device) for name, bits in self.hints.items()}
        return Cache(self.latents.to(device), hints)

    def hint(self, name: str, pictures: Tensor, variants: Tensor) -> Tensor:
        """Hints (B, 3, 128, 128) in {0, 1}."""
        packed = self.hints[name][pictures, variants][..., None]
        # As numpy.packbits packs: the highest bit is the leftmost pixel.
        places = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
        bits = ((packed >> places) & 1).flatten(-2).float()
        return bits[:, None].repeat(1, 3, 1, 1)


def _placements(index: int) -> list[Array]:
    rng = np.random.default_rng((SEED, index))
    return [
        placement(),
        placement(flip=True),
        *(random_placement(rng) for _ in range(VARIANTS - 2)),
    ]


def _encode(emoji: Emoji, index: int, vae: TinyVAE, hints: Mapping[str, HintOf]) -> dict[str, Any]:
    rendered = [render(emoji, matrix) for matrix in _placements(index)]
    device = next(vae.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        batch = pixels([picture for picture, _ in rendered]).to(device)
        latents = vae.encode(batch).float().contiguous().cpu()
    bits = {
        name: np.stack([np.packbits(hint_of(p, a) > 127, axis=-1) for p, a in rendered])
        for name, hint_of in hints.items()
    }
    return {"latents": latents, **bits}


def build_cache(
    pictures: Sequence[Emoji], vae: TinyVAE, hints: Mapping[str, HintOf], path: Path
) -> Cache:
    """Reads the cache, or computes and writes it (with the autoencoder, on its device)."""
    if not path.exists():
        with ThreadPoolExecutor() as pool:
            rows = list(
                pool.map(lambda job: _encode(job[1], job[0], vae, hints), enumerate(pictures))
            )
        table = {"latents": torch.stack([row["latents"] for row in rows])}
        table |= {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in hints}
        save_file(table, path)
    table = load_file(path)
    assert table["latents"].shape[-1] * 8 == SIZE
    return Cache(table["latents"], {name: table[name] for name in hints})
