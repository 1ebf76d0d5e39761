"""EfficientMod with channels last, and first inside the MLPs.

Attention reads and writes tokens, which the channels last are. ONNX Runtime
runs it faster so on large images, where it is most of the time.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmefficientmod.deploy.layouts.channels_first import mlp_of_convs
from mmefficientmod.deploy.layouts.parts import (
    Size,
    TokenAttention,
    Twin,
)
from mmefficientmod.models.backbones.efficientmod import AttentionBlock
from mmefficientmod.models.layers.layout import to_nchw_view


class Hybrid(Twin):
    """EfficientMod with ``(N, H, W, C)`` between MLPs of ``(N, C, H, W)``."""

    def first_norm(self, norm: Any) -> nn.Module:
        return _FirstNorm(norm)

    def last_norm(self, norm: Any) -> nn.Module:
        return norm

    def branches(self, block: Any) -> list[nn.Module]:
        if isinstance(block, AttentionBlock):
            return [
                _AttentionBranch(block.norm1, block.attn),
                _MlpBranch(block.norm2, block),
            ]
        return [_MlpBranch(block.norm, block)]

    def to_images(self, x: Tensor, size: Size) -> Tensor:
        return to_nchw_view(x)


class _FirstNorm(nn.Module):
    """``(N, C, H, W)`` to its LayerNorm ``(N, H, W, C)``."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1))


class _MlpBranch(nn.Module):
    """``x + mlp(norm(x))``, or modulation in place of the MLP."""

    def __init__(self, norm: nn.Module, block: Any) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = mlp_of_convs(block)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        y = self.mlp(to_nchw_view(self.norm(x)))
        return x + y.permute(0, 2, 3, 1)


class _AttentionBranch(nn.Module):
    """``x + attention(norm(x))``."""

    def __init__(self, norm: Any, attention: Any) -> None:
        super().__init__()
        self.norm = norm
        self.attention = TokenAttention(attention)
        self.channels = norm.normalized_shape[0]

    def forward(self, x: Tensor, size: Size) -> Tensor:
        tokens = self.norm(x).reshape(-1, self.channels)
        y = self.attention(tokens, size)
        return x + y.reshape(*size, self.channels)
