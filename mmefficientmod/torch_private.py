"""The private names of PyTorch that this package uses, and why.

PyTorch may change these names in any release, so they are in one place. Other
private names are used where they are needed: attributes of a module, such as
``_forward_hooks``, in ``layers/plain.py`` and ``layers/fast_path.py``, and one
name in ``analysis/complexity.py``. This module imports nothing of the package,
and every package may import it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

# The base class of all batch norms, synchronised and lazy ones included.
# PyTorch has no public name for it.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    'BatchNorm',
    'FSDP_WRAPPED_MODULE',
    'HAS_ONEDNN_LINEAR',
    'graph_breaks',
    'has_dispatch_modes',
    'has_global_hooks',
    'is_autocast_to_cpu',
    'is_compiling',
    'is_onednn_enabled',
    'is_transformed',
    'limit_compilations',
    'onednn_linear',
]

# FSDP inserts this name into the names of parameters. The constant in torch
# is in a private module that imports all of FSDP.
FSDP_WRAPPED_MODULE = '_fsdp_wrapped_module'

# Whether torch.compile or torch.export is tracing. The public
# `torch.compiler.is_compiling` came after torch 2.1.
is_compiling: Callable[[], bool] = (
    torch.compiler.is_compiling
    if hasattr(torch.compiler, 'is_compiling')
    else torch._dynamo.is_compiling
)


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is active.

    Their tensors look like plain ones, and PyTorch has no public function
    that tells. torch 2.1's Dynamo cannot trace this function.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def has_global_hooks() -> bool:
    """Whether a hook is registered that every module has to call.

    ``torch.nn.modules.module.register_module_forward_hook`` and its siblings
    register them, and PyTorch has no public function that asks for them.
    """
    return bool(
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


def limit_compilations(number: int) -> AbstractContextManager:
    """Within a block, set how often ``torch.compile`` compiles a function.

    Args:
        number: After so many versions of a function, it is not compiled
            again. PyTorch's default is 8.
    """
    import torch._dynamo.config  # takes seconds, so not at the top

    return torch._dynamo.config.patch(cache_size_limit=number)


def graph_breaks() -> int:
    """Graph breaks of ``torch.compile`` since the process started.

    ``torch._dynamo.explain`` tells them as well, but compiles the model again.
    """
    import torch._dynamo.utils

    return sum(torch._dynamo.utils.counters['graph_break'].values())


def is_autocast_to_cpu() -> bool:
    """Whether autocast is on for the CPU.

    torch 2.1 has another function for it, of which newer versions warn.
    """
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def has_dispatch_modes() -> bool:
    """Whether a ``TorchDispatchMode`` sees all operations of PyTorch."""
    return torch._C._len_torch_dispatch_stack() > 0


def _find_onednn_linear() -> Any:
    schema = (
        'mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, '
    )
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        operation = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None
    return operation if str(operation._schema).startswith(schema) else None


_onednn_linear = _find_onednn_linear()
HAS_ONEDNN_LINEAR = _onednn_linear is not None


def is_onednn_enabled() -> bool:
    """``torch.backends.mkldnn.enabled``, in a tenth of the time."""
    return torch._C._get_mkldnn_enabled()


def onednn_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False
) -> Tensor:
    """A linear layer by oneDNN, if there is one, see HAS_ONEDNN_LINEAR.

    PyTorch's compiler inserts this operation; it has no public name and no
    gradient.

    Args:
        x: ``(..., K)``, float32 on a CPU.
        weight: ``(N, K)``, with any strides, such as a transposed view.
        bias: ``(N,)``, or None.
        gelu: Whether to apply the exact GELU to the output. Default: False.

    Returns:
        ``(..., N)``.
    """
    if gelu:
        return _onednn_linear(x, weight, bias, 'gelu', [], 'none')
    return _onednn_linear(x, weight, bias, 'none', [], '')
