"""Activations that are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from mmefficientmod.models.layers.tracing import is_traced_by_fx_or_jit
from mmefficientmod.torch_private import BatchNorm


def recompute(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, which saves ``x`` alone and runs again for gradients.

    Batch norms see the batch twice then, and count it once in their running
    statistics. Without gradients, and under ``torch.fx`` and
    ``torch.jit.trace``, whose graphs hold no recomputation, it is
    ``block(x)``.

    Args:
        block: A module that returns one tensor.
        x: Its input.
    """
    if is_traced_by_fx_or_jit(x) or not x.requires_grad:
        return block(x)
    norms = [m for m in block.modules() if isinstance(m, BatchNorm)]
    contexts = partial(_contexts, norms) if norms else noop_context_fn
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


def _contexts(
    norms: Sequence[BatchNorm],
) -> tuple[nullcontext, PreservedBatchNormBuffers]:
    """The contexts of the first run and of the runs that follow."""
    return nullcontext(), PreservedBatchNormBuffers(norms)


class PreservedBatchNormBuffers:
    """Batch norms update copies of their buffers inside this context.

    It can be entered again: a second backward pass through a retained graph
    does so.

    Args:
        norms: The batch norms.
    """

    def __init__(self, norms: Sequence[BatchNorm]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.buffers = [
            (norm, dict(norm.named_buffers(recurse=False)))
            for norm in self.norms
        ]
        for norm, buffers in self.buffers:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())

    def __exit__(self, *exc_info: object) -> None:
        for norm, buffers in self.buffers:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
