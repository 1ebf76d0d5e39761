"""Four ways to form the product of value and context, to be measured.

EfficientMod multiplies a value of rC channels by a context of C channels. The
paper leaves open whether repeating or reshaping is faster. These variants of
our backbone differ in the product alone:

    P=tools/dev/product.py
    python tools/benchmark.py $P:Repeat $P:Reshape $P:Broadcast efficientmod_s

The paper does not say which tensor it reshapes. Here, Reshape reshapes the
context to the size of the value, and Broadcast the value to r groups of C
channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import ModulationMlp
from mmefficientmod.models.layers.memory_efficient import gelu


class Variant(EfficientMod):
    """EfficientMod whose modulation blocks call :meth:`product`.

    Args:
        arch: Name of a variant. Default: ``s``.
    """

    def __init__(self, arch: str = 's') -> None:
        super().__init__(arch)
        kind = type('Mlp', (_Mlp,), dict(product=staticmethod(self.product)))
        for module in self.modules():
            if isinstance(module, ModulationMlp):
                module.__class__ = kind

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC), (N, H, W, C) -> (N, H, W, rC)``."""
        raise NotImplementedError


class _Mlp(ModulationMlp):
    """As ModulationMlp; a subclass, so that no block takes its fast path."""

    product: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        context = self.context(x)
        value = self.fc1(x)
        if self.expand_ratio > 1:
            value = gelu(value)
        return self.fc2(self.product(value, context))


class Repeat(Variant):
    """Copy the context r times, as the authors' code does."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC), (N, H, W, C) -> (N, H, W, rC)``."""
        ratio = value.shape[-1] // context.shape[-1]
        if ratio > 1:
            context = context.repeat(1, 1, 1, ratio)
        return value * context


class Reshape(Variant):
    """Expand and reshape the context, which copies it as well."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC), (N, H, W, C) -> (N, H, W, rC)``."""
        ratio = value.shape[-1] // context.shape[-1]
        context = context.unsqueeze(-2).expand(-1, -1, -1, ratio, -1)
        return value * context.reshape(value.shape)


class Broadcast(Variant):
    """View the value as r groups of C channels; nothing is copied."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC), (N, H, W, C) -> (N, H, W, rC)``."""
        groups = value.unflatten(-1, (-1, context.shape[-1]))
        return (groups * context.unsqueeze(-2)).flatten(-2)


class BroadcastInPlace(Variant):
    """The same; without gradients it overwrites the value."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC), (N, H, W, C) -> (N, H, W, rC)``."""
        if torch.is_grad_enabled():
            return Broadcast.product(value, context)
        groups = value.unflatten(-1, (-1, context.shape[-1]))
        return groups.mul_(context.unsqueeze(-2)).flatten(-2)
