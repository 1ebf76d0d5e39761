"""Whether a forward pass is recorded for later inputs.

Recorded operations run again on other inputs. So no branch of the Python code
may depend on the input, on its size or on whether it needs a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy

from mmefficientmod.torch_private import is_compiling


def is_traced(x: Any) -> bool:
    """Whether any tracer of PyTorch records the operations on ``x``.

    These are ``torch.fx``, ``torch.jit.trace``, ``torch.compile`` and
    ``torch.export``.

    Args:
        x: The input of a module.
    """
    return is_compiling() or is_traced_by_fx_or_jit(x)


def is_traced_by_fx_or_jit(x: Any) -> bool:
    """Whether ``torch.fx`` or ``torch.jit.trace`` records operations on ``x``.

    These two record only the branch that the present input takes.
    ``torch.compile`` and ``torch.export`` also record the condition, and check
    later inputs against it.

    Args:
        x: The input of a module.
    """
    return isinstance(x, Proxy) or torch.jit.is_tracing()
