"""EfficientMod with channels first, linear layers as 1x1 convolutions.

ONNX Runtime keeps convolutions, GELU, products, sums and concatenations in
one blocked layout of its own. A chain of them is not converted in between.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmefficientmod.deploy.layouts.parts import (
    Size,
    Twin,
    as_conv,
    conv_layer,
    queries_keys_values,
)
from mmefficientmod.models.backbones.efficientmod import (
    AttentionBlock,
    MBConvBlock,
)
from mmefficientmod.models.layers.layout import to_nchw_view


class ChannelsFirst(Twin):
    """EfficientMod with ``(N, C, H, W)`` everywhere.

    Args:
        backbone: An EfficientMod, folded.
        means: Whether LayerNorms are written as means over the channels, or
            between two permutes.
    """

    def __init__(self, backbone: Any, means: bool) -> None:
        self.kind = _MeansNorm if means else _PermutedNorm
        super().__init__(backbone)

    def first_norm(self, norm: Any) -> nn.Module:
        """The LayerNorm in two: the normalisation, then weight and bias.

        The latter are a depth-wise convolution, whose output ONNX Runtime
        keeps in its blocked layout. So it can keep all sums of the stage in
        it, and compute them as parts of convolutions.
        """
        plain = nn.LayerNorm(norm.normalized_shape, norm.eps)
        plain.requires_grad_(False)
        return nn.Sequential(self.kind(plain), _scale(norm))

    def last_norm(self, norm: Any) -> nn.Module:
        return self.kind(norm)

    def branches(self, block: Any) -> list[nn.Module]:
        if isinstance(block, AttentionBlock):
            return [
                _Branch(self.kind(block.norm1), _Attention(block.attn)),
                _Branch(self.kind(block.norm2), mlp_of_convs(block)),
            ]
        return [_Branch(self.kind(block.norm), mlp_of_convs(block))]

    def to_images(self, x: Tensor, size: Size) -> Tensor:
        return x


class _PermutedNorm(nn.Module):
    """LayerNorm over the channels of ``(N, C, H, W)``."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return to_nchw_view(self.norm(x.permute(0, 2, 3, 1)))


class _MeansNorm(nn.Module):
    """LayerNorm over the channels of ``(N, C, H, W)``, without permutes."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.scale = None
        # A folded norm has constants in place of parameters.
        if isinstance(norm.weight, nn.Parameter):
            self.scale = _scale(norm)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        variance = (x * x).mean(1, keepdim=True)
        x = x * (variance + self.eps).rsqrt()
        return x if self.scale is None else self.scale(x)


def _scale(norm: Any) -> nn.Conv2d:
    """Weight and bias of a norm as a depth-wise 1x1 convolution."""
    return conv_layer(norm.weight[:, None], norm.bias, groups=len(norm.weight))


class _Branch(nn.Module):
    """``x + function(norm(x))``."""

    def __init__(self, norm: nn.Module, function: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.function = function

    def forward(self, x: Tensor, size: Size) -> Tensor:
        y = self.norm(x)
        if isinstance(self.function, _Attention):
            return x + self.function(y, size)
        return x + self.function(y)


def mlp_of_convs(block: Any) -> nn.Module:
    """The MLP of a block, or its modulation, for ``(N, C, H, W)``."""
    mlp = block.mlp
    if isinstance(block, AttentionBlock):
        middle = [nn.GELU()]
    elif isinstance(block, MBConvBlock):
        middle = [nn.GELU(), mlp.conv, nn.GELU()]
    else:
        return _Modulation(mlp)
    return nn.Sequential(as_conv(mlp.fc1), *middle, as_conv(mlp.fc2))


# Channels of a block in ONNX Runtime's blocked layout, on CPUs with AVX-512.
BLOCK = 16
# From this width on, copies made by a convolution cost more than they save.
WIDE = 128


def _copies(channels: int, times: int) -> int:
    """How often the convolution itself repeats the context, a divisor.

    ONNX Runtime concatenates inside its blocked layout only tensors of whole
    blocks. The 40 channels of s_conv's first stage are none, twice 40 are.
    """
    if channels % BLOCK and channels < WIDE:
        for copies in range(2, times + 1):
            if times % copies == 0 and copies * channels % BLOCK == 0:
                return copies
    return 1


class _Modulation(nn.Module):
    """A ``ModulationMlp`` for ``(N, C, H, W)``."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.expand_ratio = mlp.expand_ratio
        g = mlp.context.g
        copies = _copies(g.out_features, self.expand_ratio)
        self.repeats = self.expand_ratio // copies
        self.context = nn.Sequential(
            as_conv(mlp.context.f),
            mlp.context.conv,
            nn.GELU(),
            conv_layer(g.weight.repeat(copies, 1), g.bias.repeat(copies)),
        )
        self.fc1 = as_conv(mlp.fc1)
        self.fc2 = as_conv(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        value = self.fc1(x)
        if self.expand_ratio > 1:
            value = F.gelu(value)
        context = self.context(x)
        if self.repeats > 1:
            # A broadcast would need five dimensions, which ONNX Runtime
            # computes outside its blocked layout.
            context = torch.cat([context] * self.repeats, 1)
        return self.fc2(context * value)


class _Attention(nn.Module):
    """An ``Attention`` for ``(N, C, H, W)``.

    No tensor is permuted: the two products read queries and weights
    transposed.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        parts = queries_keys_values(attention)
        self.q, self.k, self.v = (conv_layer(*part) for part in parts)
        self.proj = as_conv(attention.proj)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        images, height, width = size

        def heads(part: nn.Conv2d) -> Tensor:  # (N, heads, d, L)
            number = part.out_channels // self.head_dim
            return part(x).reshape(images, number, self.head_dim, -1)

        q, k, v = heads(self.q), heads(self.k), heads(self.v)
        weights = torch.softmax(q.transpose(2, 3) @ k, -1)  # (..., L, L)
        y = v @ weights.transpose(2, 3)
        return self.proj(
            y.reshape(images, self.proj.in_channels, height, width)
        )
