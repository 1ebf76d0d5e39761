"""Self-attention among the positions of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def self_attention(qkv: Tensor, head_dim: int) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v`` for each head.

    PyTorch's fused kernel: its memory is linear in the positions.

    Args:
        qkv: ``(N, L, 3 * heads * d)``: queries, keys and values, each head
            by head.
        head_dim: Channels d of a head.

    Returns:
        ``(N, L, heads * d)``.
    """
    qkv = qkv.unflatten(-1, (3, -1, head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, L, d)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(-2)
