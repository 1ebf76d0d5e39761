"""Activations that are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, noop_context_fn


def recompute(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, which keeps ``x`` alone and is run again for gradients.

    Batch norms see the batch twice then, and take it into their running
    statistics once.
    """
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    contexts = partial(_contexts, norms) if norms else noop_context_fn
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


def _contexts(
    norms: Sequence[_BatchNorm],
) -> tuple[nullcontext, _StatisticsKept]:
    """What the first run happens in, and those that follow."""
    return nullcontext(), _StatisticsKept(norms)


class _StatisticsKept:
    """Batch norms count what they see meanwhile in copies of their buffers.

    Can be entered again, as a second backward pass through a graph that was
    retained does.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
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
