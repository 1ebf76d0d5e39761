"""EfficientMod on matrices of tokens, linear layers as products of matrices.

OpenVINO runs a product of two matrices faster than one with more dimensions,
and than a 1x1 convolution.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmefficientmod.deploy.layouts.parts import (
    Size,
    TokenAttention,
    Twin,
    product,
)
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    MBConvBlock,
)
from mmefficientmod.models.layers.layout import to_nchw_view


class Tokens(Twin):
    """EfficientMod with ``(N * H * W, C)`` between the convolutions."""

    def first_norm(self, norm: Any) -> nn.Module:
        return _FirstNorm(norm)

    def last_norm(self, norm: Any) -> nn.Module:
        return norm

    def branches(self, block: Any) -> list[nn.Module]:
        if isinstance(block, AttentionBlock):
            return [
                _Branch(block.norm1, TokenAttention(block.attn)),
                _Branch(block.norm2, _Mlp(block.mlp)),
            ]
        if isinstance(block, MBConvBlock):
            return [_Branch(block.norm, _Mlp(block.mlp, block.mlp.conv))]
        return [_Branch(block.norm, _Modulation(block.mlp))]

    def to_images(self, x: Tensor, size: Size) -> Tensor:
        return _to_images(x, size)


def _to_tokens(x: Tensor, conv: Any) -> Tensor:
    """``(N, C, H, W) -> (N * H * W, C)``, the output of a convolution."""
    return x.permute(0, 2, 3, 1).reshape(-1, conv.out_channels)


def _to_images(x: Tensor, size: Size) -> Tensor:
    """``(N * H * W, C) -> (N, C, H, W)``."""
    return to_nchw_view(x.reshape(*size, -1))


class _FirstNorm(nn.Module):
    """``(N, C, H, W)`` to its LayerNorm ``(N * H * W, C)``."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return self.norm(x.reshape(-1, self.norm.normalized_shape[0]))


class _Branch(nn.Module):
    """``x + function(norm(x))``."""

    def __init__(self, norm: nn.Module, function: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.function = function

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + self.function(self.norm(x), size)


class _Mlp(nn.Module):
    """``fc2(GELU(fc1(x)))``, or MBConv with a convolution between."""

    def __init__(self, mlp: Any, conv: Any = None) -> None:
        super().__init__()
        self.fc1, self.conv, self.fc2 = mlp.fc1, conv, mlp.fc2

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = F.gelu(product(self.fc1, x))
        if self.conv is not None:
            x = F.gelu(_to_tokens(self.conv(_to_images(x, size)), self.conv))
        return product(self.fc2, x)


class _Modulation(nn.Module):
    """A ``ModulationMlp``."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.expand_ratio = mlp.expand_ratio
        self.context, self.fc1, self.fc2 = mlp.context, mlp.fc1, mlp.fc2

    def forward(self, x: Tensor, size: Size) -> Tensor:
        context = _to_images(product(self.context.f, x), size)
        context = self.context.conv(context)
        context = F.gelu(_to_tokens(context, self.context.conv))
        context = product(self.context.g, context)
        value = product(self.fc1, x)
        if self.expand_ratio == 1:
            return product(self.fc2, context * value)
        # The context multiplies each group of channels.
        value = F.gelu(value)
        value = value.reshape(-1, self.expand_ratio, context.shape[1])
        value = (value * context[:, None]).flatten(1)
        return product(self.fc2, value)
