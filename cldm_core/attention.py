"""The one attention call of every network, handed in so that a host can bring its own kernel."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attention(Protocol):
    """softmax(q k^T / sqrt(d)) v.

    q is (B, N, heads * d), k and v are (B, M, heads * d); the result has q's shape.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor:
    """Attention by PyTorch's fused kernels."""
    width = q.shape[-1] // heads
    q, k, v = (t.view(*t.shape[:2], heads, width).transpose(1, 2) for t in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
