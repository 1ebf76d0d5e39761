"""Deploying: folding a model for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

ModuleT = TypeVar('ModuleT', bound='Deployable')


class Deployable(nn.Module):
    """A module that can fold its weights for inference, once and for all.

    A subclass defines :meth:`fold`. Afterwards the outputs are unchanged, but
    training, and loading training checkpoints, raise.

    Attributes:
        deployed: Whether the module is folded.
    """

    deployed = False
    _folded_keys: frozenset[str] = frozenset()

    def fold(self) -> None:
        """Merge layers that can be merged for inference, in place."""
        raise NotImplementedError

    def switch_to_deploy(self: ModuleT) -> ModuleT:
        """Fold the module for inference, after its weights were loaded.

        The outputs stay the same, but the module can no longer be trained,
        nor load a training checkpoint. If there is nothing to fold,
        ``deployed`` stays False and nothing changes.

        Returns:
            The module itself, in evaluation mode.

        Raises:
            RuntimeError: If the module cannot be folded as it is.
        """
        if not self.deployed:
            before = frozenset(self.state_dict())
            self.fold()
            self._folded_keys = before - frozenset(self.state_dict())
            self.deployed = bool(self._folded_keys)
            if self.deployed:
                self.requires_grad_(False)
        return self.eval()

    def train(self: ModuleT, mode: bool = True) -> ModuleT:
        """Set the mode.

        Raises:
            RuntimeError: For training after :meth:`switch_to_deploy`.
        """
        if mode and self.deployed:
            raise RuntimeError(
                f'this {type(self).__name__} was folded for inference by '
                'switch_to_deploy() and cannot be trained any more; build it '
                'anew and load the weights of the training'
            )
        return super().train(mode)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        # MMEngine would load the weights that fit, with only a warning.
        if any(prefix + key in state_dict for key in self._folded_keys):
            raise RuntimeError(
                f'this {type(self).__name__} was folded for inference by '
                'switch_to_deploy() and cannot load weights from a training; '
                'build it anew, load the weights and fold it again'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def switch_to_deploy(model: nn.Module) -> list[str]:
    """Fold each module of a model that can be folded for inference.

    Args:
        model: The model, changed in place; it cannot be trained afterwards.

    Returns:
        Names of the modules that were folded.
    """
    names: list[str] = []
    for name, module in list(model.named_modules()):
        # Skip children of a module that is already folded.
        inside = any(not x or name.startswith(f'{x}.') for x in names)
        if hasattr(module, 'switch_to_deploy') and not inside:
            module.switch_to_deploy()
            # A Deployable that has nothing to fold has `deployed = False`;
            # modules of other projects may have no such attribute.
            if getattr(module, 'deployed', True):
                names.append(name)
    return names


@torch.no_grad()
def fold_norm(norm: nn.LayerNorm, *linears: nn.Linear) -> None:
    """Move a norm's weight and bias into the linear layers that read it.

    Args:
        norm: The norm; it only normalises afterwards.
        linears: All layers that read the norm.
    """
    for linear in linears:
        shift = linear.weight @ norm.bias
        bias = shift if linear.bias is None else linear.bias + shift
        linear.bias = nn.Parameter(bias)
        linear.weight *= norm.weight
    # Constants in their place, which no checkpoint holds: PyTorch 2.1 cannot
    # export a norm without weight and bias to ONNX.
    for name, value in dict(weight=1.0, bias=0.0).items():
        constant = torch.full_like(getattr(norm, name).detach(), value)
        delattr(norm, name)
        norm.register_buffer(name, constant, persistent=False)


@torch.no_grad()
def fold_scale(linear: nn.Linear | nn.Conv2d, scale: Tensor) -> None:
    """Move the scale of a linear layer's output into its weight and bias.

    Args:
        linear: From any number of channels to C; a convolution as well.
        scale: ``(C,)``.
    """
    dims = (1,) * (linear.weight.ndim - 1)
    linear.weight.mul_(scale.view(-1, *dims))
    cast(Tensor, linear.bias).mul_(scale)


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, norm: Any) -> None:
    """Move a batch norm into the convolution before it.

    The convolution then gives what both gave in evaluation mode.

    Args:
        conv: The convolution, with a bias or without.
        norm: The batch norm, with weight, bias and statistics.
    """
    bias = None if conv.bias is None else exact(conv.bias)
    weight, shift = fused_with_norm(exact(conv.weight), bias, norm)
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(shift.to(conv.weight))


def fused_with_norm(
    weight: Tensor, bias: Tensor | None, norm: Any
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals one and its batch norm.

    Args:
        weight: Kernel ``(C, C_in, k, k)``, in float64.
        bias: ``(C,)`` in float64, or None.
        norm: The batch norm, with weight, bias and statistics.

    Returns:
        Kernel ``(C, C_in, k, k)`` and bias ``(C,)``, in float64.
    """
    scale, shift, mean, variance = map(
        exact, (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    return fuse_conv_bn_weights(
        weight, bias, mean, variance, norm.eps, scale, shift
    )


def exact(x: Any) -> Tensor:
    """A detached copy in float64, on the CPU: some devices lack float64.

    Args:
        x: A tensor.
    """
    return x.detach().to('cpu', torch.float64)
