"""What the kernels share: checks of what they are given."""

from functools import reduce

import torch
from torch import Tensor


def check(ok: bool, op: str, problem: str) -> None:
    if not ok:
        raise ValueError(f'{op}: {problem}')


def same_float(op: str, *tensors: Tensor) -> list[Tensor]:
    """Casts all to their widest floating point type, float32 or wider."""
    wrong = [t.dtype for t in tensors if not t.is_floating_point()]
    if wrong:
        raise TypeError(f'{op}: needs floating point tensors, got {wrong[0]}')
    dtypes = [torch.float32, *(t.dtype for t in tensors)]
    dtype = reduce(torch.promote_types, dtypes)
    return [t.to(dtype) for t in tensors]
