"""Self-attention of vision transformers, under the names that timm gave its layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64


class Attention(nn.Module):
    """In heads of HEAD_WIDTH channels, with one layer for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, places, width), the same size."""
        parts = self.qkv(x).unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        seen: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return seen
