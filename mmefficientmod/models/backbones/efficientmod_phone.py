"""EfficientMod for phones: batch norms in place of LayerNorm.

The paper's appendix J, for CoreML: linear layers are 1x1 convolutions, no
LayerNorm is left, and a batch norm follows each convolution, into which it is
folded for inference. There is no attention. Every tensor is channels-first,
``(N, C, H, W)``, so that an exported model has no permutes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmefficientmod.models.layers.deploy import fold_batch_norm


class ConvNorm(nn.Module):
    """``BatchNorm(Conv(x))``; folded for inference, a convolution with bias.

    A 1x1 convolution stands for a linear layer, and starts with the weights of
    one.

    Args:
        in_channels: Channels C_in of the input.
        out_channels: Channels C of the output.
        kernel_size: Side of the kernel; the padding is half of it. Default: 1.
        stride: Stride s of the convolution. Default: 1.
        groups: Groups of the convolution. Default: 1.
    """

    norm: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)
        if kernel_size == 1:
            nn.init.trunc_normal_(self.proj.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, C, ceil(H/s), ceil(W/s))``."""
        return self.norm(self.proj(x))

    def fold_norm(self) -> None:
        """Fold the batch norm into the convolution, and remove it."""
        fold_batch_norm(self.proj, self.norm)
        self.norm = nn.Identity()


class PhonePatchEmbed(ConvNorm):
    """The stem, and the downsampling of a stage."""


class PhoneContext(nn.Module):
    """The context ``ctx(x) = g(GELU(DWConv7x7(f(x))))``.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.f = ConvNorm(dim, dim)
        self.conv = ConvNorm(dim, dim, 7, groups=dim)
        self.g = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.g(F.gelu(self.conv(self.f(x))))


class PhoneMlp(nn.Module):
    """``fc2(ctx(x) * v(x))``: modulation and MLP in one.

    The value ``v(x)`` has r groups of C channels: ``fc1(x)`` for r = 1, else
    ``GELU(fc1(x))``.

    Args:
        dim: Channels C.
        expand_ratio: The expansion ratio r.
    """

    def __init__(self, dim: int, expand_ratio: int) -> None:
        super().__init__()
        self.expand_ratio = expand_ratio
        self.context = PhoneContext(dim)
        self.fc1 = ConvNorm(dim, expand_ratio * dim)
        self.fc2 = ConvNorm(expand_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        value, context = self.fc1(x), self.context(x)
        if self.expand_ratio > 1:
            value = F.gelu(value)
            # Repeated, not broadcast to five dimensions, which ncnn does not
            # have; in ONNX Runtime it is faster as well.
            context = torch.cat([context] * self.expand_ratio, 1)
        return self.fc2(context * value)


class PhoneBlock(nn.Module):
    """``x + gamma * mlp(x)``, the paper's basic block without LayerNorm.

    Args:
        dim: Channels C.
        expand_ratio: Expansion ratio r of the value.
        drop_path: Probability of dropping ``gamma * mlp`` for a sample.
        layer_scale_init_value: Initial value of gamma; 0 builds no gamma.
    """

    layers_after_norm: ClassVar[dict[str, tuple[str, ...]]] = {}
    scaled_layer = 'mlp.fc2.proj'  # gamma is folded into it

    def __init__(
        self,
        dim: int,
        expand_ratio: int,
        drop_path: float,
        layer_scale_init_value: float,
    ) -> None:
        super().__init__()
        self.mlp = PhoneMlp(dim, expand_ratio)
        self.gamma = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        y = self.mlp(x)
        if self.gamma is not None:
            y = self.gamma[:, None, None] * y
        return x + self.drop_path(y)
