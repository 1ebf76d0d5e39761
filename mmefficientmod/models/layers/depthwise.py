"""A depth-wise convolution that trains faster on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmefficientmod.models.layers.fast_path import _has_own_backward
from mmefficientmod.models.layers.memory_efficient import _differentiate


def depthwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A depth-wise convolution that keeps the size; quicker to train on CPUs.

    Args:
        x: ``(N, C, H, W)``.
        conv: With C groups, stride 1, an odd kernel and half of it as
            padding.

    Returns:
        ``(N, C, H, W)``.
    """
    if x.device.type != 'cpu' or not _has_own_backward(conv):
        return conv(x)
    return _DepthwiseConv.apply(x, conv.weight, conv.bias)


class _DepthwiseConv(Function):
    """The kernel's gradient as a convolution by the gradient of the output.

    Each of its entries is the sum of the image, shifted, times the gradient:
    what a convolution with one huge kernel a channel gives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = _depthwise_conv(x, weight, bias)
        ctx.save_for_backward(x, weight, bias)
        ctx.dtype = out.dtype  # which autocast may have chosen
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [
            t if t is None else t.to(ctx.dtype) for t in ctx.saved_tensors
        ]
        if torch.is_grad_enabled():
            return _differentiate(_depthwise_conv, tensors, (grad,))
        x, weight, bias = tensors
        grad_x = _depthwise_conv(grad, weight.flip(2, 3), None)
        grad_bias = None if bias is None else grad.sum((0, 2, 3))
        # Summed in float32, as PyTorch's own does.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        for image, kernel in zip(x, grad, strict=True):
            one = F.conv2d(
                image.unsqueeze(0),
                kernel.unsqueeze(1),
                padding=weight.shape[-1] // 2,
                groups=len(image),
            )
            grad_weight = grad_weight + one.transpose(0, 1)
        return grad_x, grad_weight, grad_bias


def _depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))
