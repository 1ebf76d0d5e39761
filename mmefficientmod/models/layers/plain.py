"""Whether a layer does no more than its class and its weights say."""

from __future__ import annotations

from torch import Tensor, nn


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than calling its class's forward.

    Hooks do so, and a ``forward`` that was set on the object.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or 'forward' in module.__dict__
    )


def is_plain(
    module: nn.Module,
    classes: tuple[type[nn.Module], ...] = (
        nn.Linear,
        nn.LayerNorm,
        nn.Conv2d,
    ),
) -> bool:
    """Whether the weights of a layer tell all that the layer does.

    They do not where its class is a subclass, as for LoRA, quantised and
    parametrised layers, where it has a hook, and where its weight is missing
    or a subclass of Tensor.

    Args:
        module: The layer.
        classes: The classes that count as plain. Default: linear layer,
            LayerNorm and two-dimensional convolution.
    """
    return (
        type(module) in classes
        and type(module.weight) in (nn.Parameter, Tensor)
        and not has_hooks(module)
    )
