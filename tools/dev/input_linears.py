"""One product for both linear layers of a modulation block, to be measured.

The layers f and fc1 read the same norm. Merged is our backbone with one
product for both, whose output is split:

    P=tools/dev/input_linears.py
    python tools/benchmark.py $P:Separate $P:Merged efficientmod_s

Neither takes the fast path of a block, so that they differ in the products
alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import ModulationMlp
from mmefficientmod.models.layers.layout import to_nchw_view, to_nhwc
from mmefficientmod.models.layers.memory_efficient import gelu, multiply


class Separate(EfficientMod):
    """EfficientMod with a product for each layer.

    Args:
        arch: Name of a variant. Default: ``s``.
    """

    mlp: type[ModulationMlp]

    def __init__(self, arch: str = 's') -> None:
        super().__init__(arch)
        for module in self.modules():
            if isinstance(module, ModulationMlp):
                module.__class__ = self.mlp


class _SeparateMlp(ModulationMlp):
    """As ModulationMlp; a subclass, so that no block takes its fast path."""

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of f and fc1, ``(N, H, W, C)`` and ``(..., rC)``."""
        return self.context.f(x), self.fc1(x)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        context, value = self.inputs(x)
        context = to_nhwc(self.context.conv(to_nchw_view(context)))
        context = self.context.g(gelu(context))
        if self.expand_ratio > 1:
            value = F.gelu(value)
        return self.fc2(multiply(value.contiguous(), context))


class _MergedMlp(_SeparateMlp):
    merged: tuple[Tensor, Tensor] | None = None

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two views of one output."""
        f, fc1 = self.context.f, self.fc1
        # Without gradients, merged once, as a folded model would have it.
        if torch.is_grad_enabled() or self.merged is None:
            self.merged = (
                torch.cat([f.weight, fc1.weight]),
                torch.cat([f.bias, fc1.bias]),
            )
        both = F.linear(x, *self.merged)
        context, value = both.split([f.out_features, fc1.out_features], -1)
        return context, value


Separate.mlp = _SeparateMlp


class Merged(Separate):
    """EfficientMod with one product for both layers.

    Args:
        arch: Name of a variant. Default: ``s``.
    """

    mlp = _MergedMlp
