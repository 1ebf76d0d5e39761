"""Functions that take the place of others while a model is recorded.

A tracer records the operations on one image. Where the toolboxes or PyTorch
compute a size by Python numbers, or use an operation that ONNX lacks, the
functions here compute the same by operations on tensors, for any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_adaptive_avg_pool2d = F.adaptive_avg_pool2d
_layer_norm = F.layer_norm


@contextmanager
def rewritten() -> Iterator[None]:
    """Inside of the block, models can be recorded for any size."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, function: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, function))

        replace(F, 'adaptive_avg_pool2d', adaptive_avg_pool2d)
        replace(F, 'layer_norm', layer_norm)
        # The toolboxes have branches for the exporter of PyTorch 1.
        replace(torch.onnx, 'is_in_onnx_export', lambda: False)
        try:
            from mmseg.models.utils.wrappers import Upsample
        except ImportError:  # MMSegmentation is not installed
            pass
        else:
            replace(Upsample, 'forward', _upsample)
        yield


def fix_random_bases(model: nn.Module) -> None:
    """Draw the random bases of Hamburger heads once, from a fixed seed.

    SegNeXt's head draws them anew for each batch, so that no prediction
    equals the one before.

    Args:
        model: The model, changed in place.
    """
    for module in model.modules():
        if getattr(module, 'rand_init', False) and hasattr(
            module, '_build_bases'
        ):
            device = next(model.parameters()).device
            with torch.random.fork_rng():
                torch.manual_seed(0)
                bases = module._build_bases(
                    1, module.S, module.D, module.R, device
                )
            module.rand_init = False
            module.register_buffer('bases', bases)


def adaptive_avg_pool2d(x: Tensor, output_size: int | Sequence) -> Tensor:
    """``(N, C, H, W)`` to the output size, by two matrix products.

    ONNX has a mean over the whole image only.
    """
    size = x.shape[-2:]
    wanted = (
        [output_size] * 2
        if isinstance(output_size, int)
        else [s if o is None else o for o, s in zip(output_size, size)]
    )
    if list(wanted) == [1, 1]:
        return _adaptive_avg_pool2d(x, 1)
    rows, columns = (_means(s, o, x) for s, o in zip(size, wanted))
    return rows @ x @ columns.transpose(0, 1)


def _means(length: Any, number: Any, like: Tensor) -> Tensor:
    """The matrix, ``(number, length)``, of means over parts of a length."""
    i = torch.arange(number, device=like.device)
    first = i * length // number
    last = ((i + 1) * length + number - 1) // number  # excluded
    position = torch.arange(length, device=like.device)
    inside = (position >= first[:, None]) & (position < last[:, None])
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm with a shape that the exporter knows."""
    if weight is not None:  # the shape may be that of a recorded tensor
        normalized_shape = tuple(int(n) for n in weight.shape)
    return _layer_norm(x, normalized_shape, weight, bias, eps)


def _upsample(self: Any, x: Tensor) -> Tensor:
    """MMSegmentation's ``Upsample``, whose size is a Python number."""
    size = self.size
    if not size:
        factor = self.scale_factor
        factors = factor if isinstance(factor, tuple) else (factor, factor)
        if all(f == int(f) for f in factors):
            size = [n * int(f) for n, f in zip(x.shape[-2:], factors)]
        else:
            size = [int(n * f) for n, f in zip(x.shape[-2:], factors)]
    return F.interpolate(
        x, size, mode=self.mode, align_corners=self.align_corners
    )
