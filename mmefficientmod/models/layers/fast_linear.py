"""Linear layers and 1x1 convolutions of any model, by the faster library.

For inference on a CPU. The blocks of this package choose a library anyway, see
:mod:`mmefficientmod.models.layers.matmul`; :func:`use_fast_linear` does the
same for heads, and for backbones of timm and the toolboxes.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn

from mmefficientmod.models.layers import matmul
from mmefficientmod.models.layers.tracing import is_traced

# mmcv's classes differ for empty inputs in old versions of PyTorch alone.
LINEAR = (nn.Linear, wrappers.Linear)
CONV = (nn.Conv2d, wrappers.Conv2d)


class FastLinear(nn.Linear):
    """A linear layer whose product runs in the faster library.

    With gradients, while it is traced or compiled, and for other dtypes and
    devices it is PyTorch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(..., K) -> (..., N)``."""
        if is_traced(input) or type(input) is not Tensor:
            return super().forward(input)
        return matmul.linear(input, self.weight, self.bias)


class FastPointwiseConv(nn.Conv2d):
    """A 1x1 convolution whose product runs in the faster library.

    As for :class:`FastLinear`, otherwise it is PyTorch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, K, H, W) -> (N, C_out, H, W)``, in the format of the input."""
        if is_traced(input) or type(input) is not Tensor or input.dim() != 4:
            return super().forward(input)
        return matmul.pointwise_conv(input, self.weight, self.bias)


def use_fast_linear(model: nn.Module) -> int:
    """Let a model's linear layers and 1x1 convolutions use the faster library.

    The layers keep their weights, names and hooks, and get another class.
    Layers of a subclass, such as LoRA's or quantised ones, stay as they are,
    as do the layers of blocks that choose a library themselves.

    Args:
        model: The model, changed in place.

    Returns:
        The number of layers that were changed.
    """
    count = 0
    for module in _without_blocks(model):
        if type(module) in LINEAR:
            module.__class__ = FastLinear
        elif _is_pointwise(module):
            module.__class__ = FastPointwiseConv
        else:
            continue
        count += 1
    return count


def _without_blocks(module: nn.Module) -> list[nn.Module]:
    """The module and all inside it, without blocks that have a fast path."""
    if hasattr(type(module), 'fast_path'):
        return []
    return [module] + [
        inner
        for child in module.children()
        for inner in _without_blocks(child)
    ]


def _is_pointwise(conv: Any) -> bool:
    return (
        type(conv) in CONV
        and conv.kernel_size == conv.stride == conv.dilation == (1, 1)
        and conv.padding in ((0, 0), 'same', 'valid')
        and conv.groups == 1
    )
