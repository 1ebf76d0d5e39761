"""Between channels first and channels last."""

from __future__ import annotations

from torch import Tensor


def to_nchw_view(x: Tensor) -> Tensor:
    """``(N, H, W, C) -> (N, C, H, W)``, the same memory."""
    return x.permute(0, 3, 1, 2)


def to_nhwc(x: Tensor) -> Tensor:
    """``(N, C, H, W) -> (N, H, W, C)``, contiguous.

    It copies only where a convolution returned another memory layout than
    its input had. The result must be contiguous for a GELU after it: with
    torch 2.1 on a CPU, GELU's backward pass returns garbage where gradient
    and activation differ in layout.
    """
    return x.permute(0, 2, 3, 1).contiguous()
