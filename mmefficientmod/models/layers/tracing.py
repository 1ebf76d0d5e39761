"""Whether a forward pass is recorded for later inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Proxy

from mmefficientmod.torch_private import is_compiling


def is_traced(x: Any) -> bool:
    """Whether the operations on ``x`` are recorded for later inputs.

    So do ``torch.fx``, whose inputs have no values, ``torch.jit.trace``,
    ``torch.compile`` and ``torch.export``. What is recorded must suit any
    later input: no branch may depend on the input, its size or whether it
    needs a gradient.

    Args:
        x: The input of a module.
    """
    return is_compiling() or torch.jit.is_tracing() or isinstance(x, Proxy)
