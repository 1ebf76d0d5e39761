"""Ways to form the product of value and context, to be measured.

EfficientMod multiplies a value of r C channels by a context of C. The paper
leaves open whether repeating or reshaping is faster; these variants of our
backbone differ in that alone:

    P=tools/dev/product.py
    python tools/benchmark.py $P:Repeat $P:Reshape $P:Broadcast efficientmod_s

The paper does not say what it reshapes. Here, Reshape reshapes the context,
to the size of the value, and Broadcast the value, to groups of C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import ModulationMlp
from mmefficientmod.models.layers.memory_efficient import add_scaled, gelu


class Variant(EfficientMod):
    """EfficientMod whose blocks call :meth:`product`.

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
        """``(N, H, W, rC)`` and ``(N, H, W, C)`` to ``(N, H, W, rC)``."""
        raise NotImplementedError


class _Mlp(ModulationMlp):
    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """As in ModulationMlp, but layer by layer."""
        x = norm(x)
        context = self.context(self.context.f(x))
        value = self.fc1(x)
        if self.expand_ratio > 1:
            value = gelu(value)
        x = self.fc2(self.product(value, context))
        return add_scaled(x, residual, gamma)


class Repeat(Variant):
    """The context is copied r times, as in the authors' code."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC)`` and ``(N, H, W, C)`` to ``(N, H, W, rC)``."""
        ratio = value.shape[-1] // context.shape[-1]
        if ratio > 1:
            context = context.repeat(1, 1, 1, ratio)
        return value * context


class Reshape(Variant):
    """The context is expanded and reshaped, which copies it, too."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC)`` and ``(N, H, W, C)`` to ``(N, H, W, rC)``."""
        ratio = value.shape[-1] // context.shape[-1]
        context = context.unsqueeze(-2).expand(-1, -1, -1, ratio, -1)
        return value * context.reshape(value.shape)


class Broadcast(Variant):
    """The value is seen as r groups of C channels; nothing is copied."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC)`` and ``(N, H, W, C)`` to ``(N, H, W, rC)``."""
        groups = value.unflatten(-1, (-1, context.shape[-1]))
        return (groups * context.unsqueeze(-2)).flatten(-2)


class BroadcastInPlace(Variant):
    """The same, written over the value where no gradient is wanted."""

    @staticmethod
    def product(value: Tensor, context: Tensor) -> Tensor:
        """``(N, H, W, rC)`` and ``(N, H, W, C)`` to ``(N, H, W, rC)``."""
        if torch.is_grad_enabled():
            return Broadcast.product(value, context)
        groups = value.unflatten(-1, (-1, context.shape[-1]))
        return groups.mul_(context.unsqueeze(-2)).flatten(-2)
