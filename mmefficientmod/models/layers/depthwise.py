"""A depth-wise convolution that trains faster on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmefficientmod.models.layers.memory_efficient import differentiate


def depthwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A depth-wise convolution, whose gradient is faster on a CPU.

    The fast path of a block calls it; see
    :class:`mmefficientmod.models.layers.fast_path.FastPath`.

    Args:
        x: ``(N, C, H, W)``.
        conv: A plain convolution. One that does not keep the size, or is not
            depth-wise, runs as PyTorch's.

    Returns:
        ``(N, C, H, W)``.
    """
    if not (
        torch.is_grad_enabled()
        and x.device.type == 'cpu'
        and _is_depthwise(conv)
    ):
        return conv(x)
    return _DepthwiseConv.apply(x, conv.weight, conv.bias)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is depth-wise and keeps the size."""
    size = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (size, size)
        and size % 2 == 1
        and conv.padding == (size // 2, size // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == 'zeros'
    )


class _DepthwiseConv(Function):
    """A depth-wise convolution that computes its kernel's gradient faster.

    Each entry of the kernel's gradient is the sum over all positions of the
    shifted image times the output's gradient. So a convolution of the image
    gives all entries: the output's gradient is its kernel, as large as the
    image, for each channel. PyTorch's own computation is several times slower
    on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        out = _convolve(x, weight, bias)
        ctx.save_for_backward(x, weight, bias)
        ctx.dtype = out.dtype  # autocast may have chosen another than x's
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors: list[Any] = [
            t if t is None else t.to(ctx.dtype) for t in ctx.saved_tensors
        ]
        if torch.is_grad_enabled():
            return differentiate(_convolve, tensors, (grad,))
        x, weight, bias = tensors
        grad_x = _convolve(grad, weight.flip(2, 3), None)
        grad_bias = None if bias is None else grad.sum((0, 2, 3))
        # Summed over the images in float32, as PyTorch's own gradient is.
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=wide)
        if weight.dtype is torch.float16:
            # The sum over one image can overflow where that over all is small.
            x, grad = x.to(wide), grad.to(wide)
        for image, kernel in zip(x, grad, strict=True):
            one = F.conv2d(
                image.unsqueeze(0),
                kernel.unsqueeze(1),
                padding=weight.shape[-1] // 2,
                groups=len(image),
            )
            grad_weight = grad_weight + one.transpose(0, 1)
        return grad_x, grad_weight, grad_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))
