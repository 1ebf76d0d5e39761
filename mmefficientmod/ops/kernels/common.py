"""Checks of arguments that the kernels share."""

from functools import reduce

import torch
from torch import Tensor


def check(ok: bool | Tensor, op: str, problem: str) -> None:
    """Raise ValueError with the name of the op if ``ok`` is False."""
    if not ok:
        raise ValueError(f'{op}: {problem}')


def same_float(op: str, *tensors: Tensor) -> list[Tensor]:
    """Cast all to the widest of their floating point types and float32.

    Raises:
        TypeError: If a tensor is not of a floating point type.
    """
    wrong = [t.dtype for t in tensors if not t.is_floating_point()]
    if wrong:
        raise TypeError(f'{op}: needs floating point tensors, got {wrong[0]}')
    dtypes = [torch.float32, *(t.dtype for t in tensors)]
    dtype = reduce(torch.promote_types, dtypes)
    return [t.to(dtype) for t in tensors]
