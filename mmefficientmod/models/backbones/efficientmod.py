"""EfficientMod, written from the paper's equations and table of variants.

Paper: Ma et al., "Efficient Modulation for Vision Networks", ICLR 2024,
https://arxiv.org/abs/2403.19963. The outputs equal those of the authors' code,
https://github.com/ma-xu/EfficientMod (Apache-2.0), within 1e-6 of their
largest value.

Inside a stage every tensor is channels-last, ``(N, H, W, C)``, so that linear
layers and norms read contiguous memory. A convolution sees the same memory as
a ``(N, C, H, W)`` view in PyTorch's ``channels_last`` format: no copies.
The phone blocks work channels-first, see
:mod:`mmefficientmod.models.backbones.efficientmod_phone`.

The ``forward`` of each module computes the module's equation. That of a block
does so only if the block's fast path, which gives the same result, may not
run; see :mod:`mmefficientmod.models.layers.fast_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmefficientmod.models.backbones.base import (
    PyramidBackbone,
    Stage,
    drop_path_rates,
    init_linear,
    parse_variant,
)
from mmefficientmod.models.backbones.efficientmod_phone import (
    PhoneBlock,
    PhonePatchEmbed,
)
from mmefficientmod.models.backbones.efficientmod_variants import VARIANTS
from mmefficientmod.models.backbones.efficientmod_weights import (
    EfficientModWeights,
)
from mmefficientmod.models.layers.attention import self_attention
from mmefficientmod.models.layers.fast_path import (
    FastPath,
    attention_block,
    may_run,
    mbconv_block,
    modulation_block,
)
from mmefficientmod.models.layers.layout import to_nchw_view, to_nhwc
from mmefficientmod.models.layers.reparam import (
    Reparameterisable,
    parse_reparam,
)
from mmefficientmod.registry import MODELS


class PatchEmbed(nn.Module):
    """``LayerNorm(Conv(x))``: the stem, and the downsampling of a stage.

    Args:
        in_channels: Channels C_in of the input.
        out_channels: Channels C of the output.
        kernel_size: Side of the kernel; the padding is half of it.
        stride: Stride s of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2
        )
        if in_channels > 4:
            # Weights in channels_last like the input, so no call converts
            # them; the stem's image is NCHW.
            self.proj.to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, ceil(H/s), ceil(W/s), C)``."""
        return self.norm(to_nhwc(self.proj(x)))


class ContextBranch(Reparameterisable):
    """The context ``ctx(x) = g(GELU(DWConv7x7(f(x))))``.

    Args:
        dim: Channels C.

    Attributes:
        branches: Parallel branches of the convolution during training, see
            ``reparam`` of :class:`EfficientMod`; None in the plain variants.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.f = nn.Linear(dim, dim)
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.g = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        x = to_nchw_view(self.f(x))
        y = self.conv(x)
        if self.branches is not None:
            y = y + self.branches(x)
        return self.g(F.gelu(to_nhwc(y)))


class ModulationMlp(nn.Module):
    """``fc2(ctx(x) * v(x))``: modulation and MLP in one.

    The value ``v(x)`` has rC channels, in r groups of C: ``fc1(x)`` for
    r = 1, else ``GELU(fc1(x))``. The context multiplies each group, and
    ``fc2`` brings rC channels back to C.

    Args:
        dim: Channels C.
        expand_ratio: The expansion ratio r.
    """

    def __init__(self, dim: int, expand_ratio: int) -> None:
        super().__init__()
        self.expand_ratio = expand_ratio
        self.context = ContextBranch(dim)
        self.fc1 = nn.Linear(dim, expand_ratio * dim)
        self.fc2 = nn.Linear(expand_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        value = self.fc1(x)
        if self.expand_ratio > 1:
            value = F.gelu(value)
        value = value.unflatten(-1, (self.expand_ratio, -1))  # (N, H, W, r, C)
        context = self.context(x).unsqueeze(-2)  # (N, H, W, 1, C)
        return self.fc2((context * value).flatten(-2))


class MBConvMlp(nn.Module):
    """``fc2(GELU(DWConv7x7(GELU(fc1(x)))))``: MBConv, without its norms.

    The depth-wise convolution has all the channels that ``fc1`` expands to.

    Args:
        dim: Channels C.
        expand_ratio: Channels of the convolution in C, rounded to a multiple
            of 8.
    """

    def __init__(self, dim: int, expand_ratio: float) -> None:
        super().__init__()
        hidden_dim = max(8 * round(expand_ratio * dim / 8), 8)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.conv = nn.Conv2d(
            hidden_dim, hidden_dim, 7, padding=3, groups=hidden_dim
        )
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        x = to_nchw_view(F.gelu(self.fc1(x)))
        return self.fc2(F.gelu(to_nhwc(self.conv(x))))


class ModulationBlock(nn.Module):
    """``x + gamma * mlp(LayerNorm(x))``, the paper's basic block.

    Args:
        dim: Channels C.
        expand_ratio: Expansion ratio r of the value, an integer.
        drop_path: Probability of dropping ``gamma * mlp`` for a sample.
        layer_scale_init_value: Initial value of gamma; 0 builds no gamma.
    """

    mlp_type: ClassVar[type[nn.Module]] = ModulationMlp
    fast_path = FastPath(modulation_block, ModulationMlp, ContextBranch)
    # The linear layers that read each norm, which is folded into them for
    # inference.
    layers_after_norm: ClassVar[dict[str, tuple[str, ...]]] = dict(
        norm=('mlp.context.f', 'mlp.fc1')
    )
    scaled_layer = 'mlp.fc2'  # gamma is folded into it

    def __init__(
        self,
        dim: int,
        expand_ratio: float,
        drop_path: float,
        layer_scale_init_value: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = self.mlp_type(dim, expand_ratio)
        self.gamma = (
            nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            if layer_scale_init_value > 0
            else None
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        if may_run(self, x):
            return self.fast_path(self, x)
        y = self.mlp(self.norm(x))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y)


class MBConvBlock(ModulationBlock):
    """A ``ModulationBlock`` with MBConv in place of modulation.

    The paper compares the two blocks. Here ``expand_ratio`` may be a fraction.
    """

    mlp_type = MBConvMlp
    fast_path = FastPath(mbconv_block, MBConvMlp)
    layers_after_norm = dict(norm=('mlp.fc1',))


BLOCKS: dict[str, Any] = dict(
    modulation=ModulationBlock, mbconv=MBConvBlock, phone=PhoneBlock
)


class Attention(nn.Module):
    """``proj(softmax(q k^T / sqrt(d)) v)``: multi-head self-attention.

    Args:
        dim: Channels C.
        num_heads: Heads. Each has ``d = max(C // num_heads, 32)`` channels,
            so that all heads together may have more than C.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.head_dim = max(dim // num_heads, 32)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim, bias=False)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, L, C) -> (N, L, C)``, L positions."""
        return self.proj(self_attention(self.qkv(x), self.head_dim))


class AttentionMlp(nn.Module):
    """``fc2(GELU(fc1(x)))``: the MLP of the attention blocks.

    Args:
        dim: Channels C.
        hidden_dim: Channels between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))


class AttentionBlock(nn.Module):
    """``y + mlp(norm2(y))`` with ``y = x + attn(norm1(x))``.

    It has no layer scale, as in the authors' code.

    Args:
        dim: Channels C.
        mlp_ratio: Channels of the MLP's hidden layer in C.
        drop_path: Probability of dropping ``attn`` or ``mlp`` for a sample.
    """

    fast_path = FastPath(attention_block, Attention, AttentionMlp)
    layers_after_norm: ClassVar = dict(norm1=('attn.qkv',), norm2=('mlp.fc1',))

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = AttentionMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        if may_run(self, x):
            return self.fast_path(self, x)
        shape = x.shape
        x = x.flatten(1, 2)  # (N, L, C)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.reshape(shape)


@ROOT_MODELS.register_module()
@MODELS.register_module()
class EfficientMod(EfficientModWeights, PyramidBackbone):
    """EfficientMod backbone with a pyramid of outputs.

    Four stages at strides 4, 8, 16 and 32. An input of ``(N, C, H, W)`` of
    any size gives, for each level in ``out_indices``, a contiguous
    ``(N, dims[i], ceil(H / stride), ceil(W / stride))``.

    The initialisation is that of the authors' code, with which the published
    results were trained: truncated normal (0.02) and zero bias for linear
    layers, PyTorch's default for convolutions. The condition in their code,
    ``isinstance(m, nn.Linear or nn.Conv2d)``, is true for linear layers only.

    Args:
        arch: Name of a variant (``xxs``, ``xs``, ``s``, ``s_conv``; the
            models for phones ``xxs_conv``, ``xxs_phone``; the MBConv models
            ``mbconv_xs``, ``mbconv_s``; a hyphen may replace the underscore)
            or a dict with the keys ``dims``, ``depths``
            (modulation blocks in each stage), ``attn_depths`` (attention
            blocks after them), ``expand_ratios`` (cycled over the modulation
            blocks; integers), ``attn_mlp_ratios`` and, optionally, ``block``
            (``'modulation'``; ``'phone'`` for modulation with batch norms
            and without attention; ``'mbconv'`` for MBConv, whose ratios may
            be fractions) and ``drop_path_rate`` (0).
        in_channels: Channels of the image. Default: 3.
        out_indices: Stages to return, 0 to 3 or -4 to -1, in ascending
            order; an int selects one stage. Stages after the last of them
            are not built. Default: all four.
        drop_path_rate: Stochastic depth of the last block, rising linearly
            from 0 at the first. Default: the variant's own (0.02 for s,
            s_conv and mbconv_s, 0 for the others).
        layer_scale_init_value: Initial layer scale of the modulation or
            MBConv blocks; 0 builds no layer scale. Default: 1e-4.
        final_norm: Apply a LayerNorm, or after phone blocks a batch norm, to
            the output of the last stage. Classification needs it; the
            authors' dense models have none. Default: False.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages: no gradients, and evaluation mode. Default: -1.
        norm_eval: Keep the batch norms of phone blocks and of ``reparam``,
            and those that a user adds, in evaluation mode during training.
            LayerNorm is the same in both modes. Default: False.
        with_cp: Recompute each block in the backward pass to save memory.
            Default: False.
        reparam: Parallel branches of the 7x7 convolution of each modulation
            block during training, each with a batch norm, which are merged
            into the convolution afterwards: True for a 3x3 convolution and
            the identity, or a sequence of odd kernel sizes below 7 and
            ``'identity'``. Their batch norms start with weight 1, as in
            RepVGG and RepLKNet. If weights of a plain variant are loaded,
            they start with weight 0 instead, so that the outputs are those
            of the plain variant. Default: None, no branches.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a
            checkpoint of this project or of the authors strictly; see
            :func:`mmefficientmod.checkpoint.load_pretrained`.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.
        reparam: The branches that the model has; none after merging.
        deployed: Whether the model is folded for inference.

    Raises:
        ValueError: For an unknown arch, a malformed dict, an index or number
            of stages out of range, or unknown branches.

    Example:
        >>> model = EfficientMod('s')
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 144, 4, 6), (1, 312, 2, 3)]
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 's',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        layer_scale_init_value: float = 1e-4,
        final_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        reparam: bool | Sequence[int | str] | None = None,
        init_cfg: Mapping[str, Any] | Sequence[Mapping] | None = None,
    ) -> None:
        arch = parse_arch(arch)
        dims = arch['dims']
        super().__init__(
            dims, out_indices, final_norm, frozen_stages, norm_eval, init_cfg
        )
        if drop_path_rate is None:
            drop_path_rate = arch['drop_path_rate']
        num_blocks = sum(arch['depths']) + sum(arch['attn_depths'])
        rates = drop_path_rates(drop_path_rate, num_blocks)

        phone = arch['block'] == 'phone'
        self.channels_last = not phone
        embed = PhonePatchEmbed if phone else PatchEmbed
        self.stem = embed(in_channels, dims[0], kernel_size=7, stride=4)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims[: self.num_built]):
            downsample = (
                embed(dims[i - 1], dim, kernel_size=3, stride=2) if i else None
            )
            ratios = arch['expand_ratios']
            blocks: list[nn.Module] = [
                BLOCKS[arch['block']](
                    dim,
                    ratios[j % len(ratios)],
                    next(rates),
                    layer_scale_init_value,
                )
                for j in range(arch['depths'][i])
            ]
            blocks += [
                AttentionBlock(dim, arch['attn_mlp_ratios'][i], next(rates))
                for _ in range(arch['attn_depths'][i])
            ]
            self.stages.append(Stage(downsample, blocks, with_cp, not phone))
        norm = nn.BatchNorm2d if phone else nn.LayerNorm
        self.norm = norm(dims[-1]) if final_norm else None

        self.apply(init_linear)
        # Built last, so that all other layers get the initial weights of the
        # plain variant.
        self._add_branches(parse_reparam(reparam))
        self._freeze_stages()


def parse_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variant, checked.

    Args:
        arch: Name of a variant, or a dict of settings.

    Raises:
        ValueError: For an unknown variant or wrong settings; the message
            lists the possible ones.
    """
    settings = parse_variant(
        arch,
        VARIANTS,
        'EfficientMod',
        per_stage=('depths', 'attn_depths', 'attn_mlp_ratios'),
        defaults=dict(block='modulation', drop_path_rate=0.0),
    )
    if settings['block'] not in BLOCKS:
        raise ValueError(
            f'EfficientMod has no block {settings["block"]!r}; there are '
            f'{", ".join(BLOCKS)}'
        )
    if not settings['expand_ratios']:
        raise ValueError(
            'expand_ratios of EfficientMod is empty; it needs at least one '
            'ratio, for example (1, 6)'
        )
    if settings['block'] == 'phone' and any(settings['attn_depths']):
        raise ValueError(
            f'EfficientMod with block={settings["block"]!r} has no attention, '
            f'and attn_depths is {tuple(settings["attn_depths"])}; give a 0 '
            'for each stage'
        )
    # The context multiplies r groups of channels, so that modulation needs an
    # integer r.
    whole = settings['block'] != 'mbconv'
    for ratio in settings['expand_ratios']:
        if not isinstance(ratio, int if whole else (int, float)) or ratio <= 0:
            raise ValueError(
                f'EfficientMod with block={settings["block"]!r} has the ratio '
                f'{ratio!r} in expand_ratios; each must be '
                f'{"an integer" if whole else "a number"} above 0'
            )
    return settings
