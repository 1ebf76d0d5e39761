"""Whether the class and the weights of a layer determine its output."""

from __future__ import annotations

from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn

# The classes of batch norms that can be folded; a subclass may compute more.
# `torch_private.BatchNorm` is the base class, for finding batch norms of all
# kinds. MMEngine's `revert_sync_batchnorm` turns a SyncBatchNorm into a
# `_BatchNormXd`.
BATCH_NORMS = (nn.BatchNorm2d, _BatchNormXd, nn.SyncBatchNorm)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs more than the ``forward`` of its class.

    A module with hooks does so, and an object with a ``forward`` of its own.
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
    """Whether one of the given classes and the weights determine the output.

    They do not determine the output of a subclass (LoRA, quantised and
    parametrised layers), of a layer with a hook, and of a layer whose weight
    is missing or a subclass of Tensor.

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


def check_plain(layer: nn.Module, operation: str) -> None:
    """Raise if a layer is not plain.

    Args:
        layer: The layer.
        operation: What needs a plain layer, for the message.

    Raises:
        RuntimeError: If the layer is not plain, see :func:`is_plain`.
    """
    if not is_plain(layer):
        raise RuntimeError(
            f'{operation} needs plain layers, and this '
            f'{type(layer).__name__} is not plain: its class is not exactly '
            'Linear, LayerNorm or Conv2d, its weight is no plain tensor, or '
            'it has a hook; merge it or remove the hook first'
        )


def check_batch_norm(norm: nn.Module, operation: str) -> None:
    """Raise if a norm is no batch norm that a convolution can take in.

    Args:
        norm: The norm.
        operation: What needs one, for the message.

    Raises:
        RuntimeError: If the norm is not exactly a batch norm with weight and
            statistics, or has a hook.
    """
    if (
        not is_plain(norm, BATCH_NORMS)
        or norm.running_var is None
        or norm.weight is None
    ):
        raise RuntimeError(
            f'{operation} needs batch norms with weight and running '
            f'statistics and without hooks, and the model has {norm}; train '
            'with a BatchNorm2d in its place, or remove its hook'
        )
