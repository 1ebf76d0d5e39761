"""When the fast ways of layers may run, and in how many chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# What a CPU's second-level cache holds, more or less; far from it, half or
# twice as much takes as long.
PART_BYTES = 4 * 2**20
# torch 2.1 has it in another place.
is_compiling = getattr(torch.compiler, 'is_compiling', None)
if is_compiling is None:
    is_compiling = torch._dynamo.is_compiling


def _has_own_backward(*modules: nn.Module) -> bool:
    # Where weights are frozen, PyTorch keeps and does less by itself.
    return (
        torch.is_grad_enabled()
        and not _is_traced()
        and all(is_plain(m) and m.weight.requires_grad for m in modules)
    )


def is_plain(
    module: nn.Module,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.LayerNorm, nn.Conv2d),
) -> bool:
    """Whether a layer is no more than its weights, and need not be called.

    It may be more by its class, by a hook, or by a ``forward`` that was put
    in, as parametrisation, LoRA and quantisation do.

    Args:
        module: The layer.
        kinds: Classes that are plain ones.
    """
    return (
        type(module) in kinds
        and type(module.weight) in (nn.Parameter, Tensor)
        and 'forward' not in vars(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )


def _may_overwrite() -> bool:
    """Whether nobody needs what a layer gave; ``vmap`` could not write it."""
    if torch.is_grad_enabled():
        return False
    # Dynamo of torch 2.1 cannot read what follows.
    return is_compiling() or not _is_transformed()


def _is_traced() -> bool:
    return is_compiling() or torch.jit.is_tracing() or _is_transformed()


def _is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def count_parts(x: Tensor, width: int, *modules: nn.Module) -> int:
    """How many parts :func:`in_parts` is best called with; 1 where it is not.

    Args:
        x: ``(..., C)``, of as many pixels as are parted.
        width: Channels of what lies between.
        modules: What the function calls, that nobody else may see the parts.
    """
    if is_compiling() or torch.jit.is_tracing():
        return 1
    # The size comes before what takes longer to ask: small images are many.
    count = x.numel() // x.shape[-1] * width * x.element_size() // PART_BYTES
    if (
        count < 2
        or x.device.type != 'cpu'
        or not _may_overwrite()
        or not all(is_plain(m) for m in modules)
    ):
        return 1
    return count


def in_parts(
    function: Callable[..., Tensor], *tensors: Tensor | None, count: int
) -> Tensor:
    """Apply a function of pixels to some of them at a time.

    What is wider than its input and its output, and lies between them, then
    stays in the caches of a CPU, whose memory is otherwise given back and
    asked for anew in each layer.

    Args:
        function: Takes and gives tensors ``(rows, C_i)``, row by row.
        tensors: ``(..., C_i)``, or None.
        count: How many parts; see :func:`count_parts`.
    """
    shape = tensors[0].shape[:-1]
    rows = math.prod(shape)
    step = math.ceil(rows / count)
    flat = [x if x is None else x.flatten(0, -2) for x in tensors]
    outs = [
        function(*(x if x is None else x[i : i + step] for x in flat))
        for i in range(0, rows, step)
    ]
    return torch.cat(outs).view(*shape, -1)
