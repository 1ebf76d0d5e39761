"""EfficientMod, written from the paper's equations and table of variants.

Paper: Ma et al., "Efficient Modulation for Vision Networks", ICLR 2024,
https://arxiv.org/abs/2403.19963. The authors' code, whose numbers this file
reproduces, is https://github.com/ma-xu/EfficientMod (Apache-2.0).

Inside a stage every tensor is channels-last, ``(N, H, W, C)``, so that linear
layers and norms read contiguous memory. A convolution sees the same memory as
a ``(N, C, H, W)`` view in PyTorch's ``channels_last`` format: no copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor, nn

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.models.backbones.base import (
    PyramidBackbone,
    Stage,
    drop_path_rates,
    init_linear,
    parse_variant,
    to_nchw_view,
    to_nhwc,
)
from mmefficientmod.models.backbones.efficientmod_weights import (
    BRANCHES,
    _branches_differ,
    rename_official_keys,
)
from mmefficientmod.models.layers.deploy import Foldable
from mmefficientmod.models.layers.depthwise import depthwise_conv
from mmefficientmod.models.layers.fast_path import (
    count_parts,
    in_parts,
    is_plain,
)
from mmefficientmod.models.layers.memory_efficient import (
    add_scaled,
    gelu,
    gelu_linear,
    norm_linear,
    product_linear,
)
from mmefficientmod.models.layers.reparam import (
    ParallelBranches,
    parse_reparam,
)
from mmefficientmod.registry import MODELS

# One line a variant, as in the paper's table of configurations. The ratios
# are a cycle: block j of a stage expands by expand_ratios[j % len]. The
# attention blocks of a stage come after the others, whose kind block says.
ARCHS: dict[str, dict[str, Any]] = {
    'xxs': dict(
        dims=(32, 64, 128, 256), depths=(2, 2, 6, 2),
        attn_depths=(0, 0, 1, 2), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.0),
    'xs': dict(
        dims=(32, 64, 144, 288), depths=(3, 3, 4, 2),
        attn_depths=(0, 0, 3, 3), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 4), drop_path_rate=0.0),
    's': dict(
        dims=(32, 64, 144, 312), depths=(4, 4, 8, 4),
        attn_depths=(0, 0, 4, 4), attn_mlp_ratios=(4, 4, 4, 5),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.02),
    's_conv': dict(
        dims=(40, 80, 160, 344), depths=(4, 4, 12, 8),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.02),
}  # fmt: skip
# The counterparts in the paper's study of the block: MBConv in the same
# place, wider by as much as gives the same parameters, and no attention.
# Known of them are parameters and FLOPs, 12.9 M and 1.6 G, 6.4 M and 0.7 G,
# and the same for modulation blocks, 12.9 M and 1.5 G, 6.4 M and 0.7 G. The
# former is s_conv. The rest is inferred. From s to s_conv, attention blocks
# become modulation blocks; so they do here, from xs, and the ratio 6 of s and
# the width 320 give 6.43 M and 0.68 G. The ratios of MBConv are one pair with
# which all is within 2 %: 12.91 M and 1.59 G, 6.29 M and 0.71 G.
MBCONV_ARCHS: dict[str, dict[str, Any]] = {
    'mbconv_xs': dict(
        dims=(32, 64, 144, 320), depths=(3, 3, 7, 5),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='mbconv', expand_ratios=(1.3, 7.1), drop_path_rate=0.0),
    'mbconv_s': dict(
        dims=(40, 80, 160, 344), depths=(4, 4, 12, 8),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='mbconv', expand_ratios=(1.3, 7.1), drop_path_rate=0.02),
}  # fmt: skip


class PatchEmbed(nn.Module):
    """Strided convolution and LayerNorm: the stem and the downsampling.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel; padded by half of it.
        stride: Stride of the convolution.
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
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
        )
        if in_channels > 4:
            # As its input is; otherwise each call would bring it there. An
            # image is not.
            self.proj.to(memory_format=torch.channels_last)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, ceil(H/s), ceil(W/s), C_out)``."""
        return self.norm(to_nhwc(self.proj(x)))


class ContextBranch(nn.Module):
    """The context ``g(GELU(DWConv7x7(f(x))))`` of the modulation.

    Args:
        dim: Channels C.
        kernel_size: Side of the depth-wise kernel.

    Attributes:
        branches: What runs beside the convolution, while it is trained; None
            in the plain variants.
    """

    def __init__(self, dim: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.f = nn.Linear(dim, dim)
        self.conv = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim
        )
        self.branches: ParallelBranches | None = None
        self.g = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``f(x)``, ``(N, H, W, C)``, to the context, ``(N, H, W, C)``."""
        x = to_nchw_view(x)
        out = depthwise_conv(x, self.conv)
        if self.branches is not None:
            out = self.branches(x, out)
        return gelu_linear(to_nhwc(out), self.g)

    def merge_branches(self) -> None:
        """Merge the branches into the convolution, and be without them."""
        self.branches.merge_into(self.conv)
        del self.branches  # or its name would stay among the modules
        self.branches = None


class ModulationMlp(nn.Module):
    """``fc2(context(x) * fc1(x))``: the MLP with the context merged in.

    ``fc1`` expands C to rC channels, with a GELU only where r > 1; the
    context has C channels and multiplies each of the r groups; ``fc2``
    brings rC back to C.

    Args:
        dim: Channels C.
        expand_ratio: The ratio r.
    """

    def __init__(self, dim: int, expand_ratio: int) -> None:
        super().__init__()
        self.expand_ratio = expand_ratio
        self.context = ContextBranch(dim)
        self.fc1 = nn.Linear(dim, expand_ratio * dim)
        self.fc2 = nn.Linear(expand_ratio * dim, dim)

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """``residual + gamma * mlp(norm(x))``, all ``(N, H, W, C)``."""

        def product(
            value: Tensor, context: Tensor, residual: Tensor | None
        ) -> Tensor:
            activate = self.expand_ratio > 1
            return product_linear(
                value, context, self.fc2, activate, gamma, residual
            )

        width = self.expand_ratio * x.shape[-1]
        count = count_parts(x, width, self.fc1, self.fc2)
        if count > 1:
            x = norm(x)
            context = self.context(self.context.f(x))
            return in_parts(
                lambda x, *others: product(self.fc1(x), *others),
                x,
                context,
                residual,
                count=count,
            )
        # f and fc1 read the same input, but one product for both is slower
        # on a CPU: its two halves are no contiguous memory any more, which
        # the convolution and the GELU pay for.
        context, value = norm_linear(x, norm, self.context.f, self.fc1)
        return product(value, self.context(context), residual)

    def readers(self) -> tuple[nn.Linear, ...]:
        """The layers that read the norm."""
        return self.context.f, self.fc1


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

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        gamma: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """``residual + gamma * mlp(norm(x))``, all ``(N, H, W, C)``."""
        (x,) = norm_linear(x, norm, self.fc1)
        x = to_nhwc(depthwise_conv(to_nchw_view(gelu(x)), self.conv))
        return add_scaled(gelu_linear(x, self.fc2), residual, gamma)

    def readers(self) -> tuple[nn.Linear, ...]:
        """The layers that read the norm."""
        return (self.fc1,)


class ModulationBlock(nn.Module):
    """``x + gamma * modulation(LayerNorm(x))``, the paper's basic block.

    Args:
        dim: Channels C.
        expand_ratio: Expansion r of the value.
        drop_path: Probability of dropping the branch for a sample.
        layer_scale_init_value: Start of gamma, none where 0.
    """

    mlp_type: type[nn.Module] = ModulationMlp

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
        if isinstance(self.drop_path, nn.Identity) or not self.training:
            return self.mlp(x, self.norm, self.gamma, x)
        return x + self.drop_path(self.mlp(x, self.norm, self.gamma, None))

    def folded_layers(self) -> tuple[nn.Module, ...]:
        """What :meth:`fold` changes."""
        return self.norm, *self.mlp.readers(), self.mlp.fc2

    def fold(self) -> None:
        """Fold the norm's affine part and gamma into the linear layers."""
        fold_affine(self.norm, *self.mlp.readers())
        if self.gamma is not None:
            self.mlp.fc2.weight *= self.gamma[:, None]
            self.mlp.fc2.bias *= self.gamma
            self.gamma = None


class MBConvBlock(ModulationBlock):
    """The same around MBConv: the rival in the paper's study of the block."""

    mlp_type = MBConvMlp


BLOCKS = dict(modulation=ModulationBlock, mbconv=MBConvBlock)


class Attention(nn.Module):
    """Multi-head self-attention over all positions, without qkv bias.

    Args:
        dim: Channels C.
        num_heads: Heads; each has ``max(C // num_heads, 32)`` channels,
            so that the heads together may be wider than C.
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = max(dim // num_heads, 32)
        inner_dim = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner_dim, bias=False)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(N, L, C)``, L positions before the norm, to ``(N, L, C)``."""
        (qkv,) = norm_linear(x, norm, self.qkv)
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, L, d)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(-2))


class AttentionMlp(nn.Module):
    """The plain MLP of the attention blocks: linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(..., C)``, before the norm, to ``(..., C)``."""
        (x,) = norm_linear(x, norm, self.fc1)
        return gelu_linear(x, self.fc2)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block; it has no layer scale, as in their code.

    Args:
        dim: Channels C.
        mlp_ratio: Width of the MLP's hidden layer in C.
        drop_path: Probability of dropping a branch for a sample.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = AttentionMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        shape = x.shape
        x = x.flatten(1, 2)  # (N, H, W, C) -> (N, L, C)
        x = x + self.drop_path(self.attn(x, self.norm1))
        x = x + self.drop_path(self.mlp(x, self.norm2))
        return x.reshape(shape)

    def folded_layers(self) -> tuple[nn.Module, ...]:
        """What :meth:`fold` changes."""
        return self.norm1, self.attn.qkv, self.norm2, self.mlp.fc1

    def fold(self) -> None:
        """Fold the affine parts of the norms into the linear layers."""
        fold_affine(self.norm1, self.attn.qkv)
        fold_affine(self.norm2, self.mlp.fc1)


@ROOT_MODELS.register_module()
@MODELS.register_module()
class EfficientMod(Foldable, PyramidBackbone):
    """EfficientMod backbone with a pyramid of outputs.

    Four stages at strides 4, 8, 16 and 32. An input of ``(N, C, H, W)`` of
    any size gives, for each level in ``out_indices``, a contiguous
    ``(N, dims[i], ceil(H / stride), ceil(W / stride))``.

    The initialisation is that of the authors' code: truncated normal (0.02)
    and zero bias for linear layers, while convolutions keep PyTorch's, since
    ``nn.Linear or nn.Conv2d`` in their ``isinstance`` means the first alone.
    The published results contain that.

    Args:
        arch: Name of a variant (``xxs``, ``xs``, ``s``, ``s_conv``; the
            counterparts ``mbconv_xs`` and ``mbconv_s``; a hyphen is as good
            as the underscore) or a dict with the keys ``dims``, ``depths``
            (modulation blocks a stage), ``attn_depths`` (attention blocks
            after them), ``expand_ratios`` (cycled over the modulation
            blocks), ``attn_mlp_ratios`` and, optionally, ``block``
            (``'modulation'``, or ``'mbconv'`` for MBConv in its place) and
            ``drop_path_rate`` (0).
        in_channels: Channels of the image. Default: 3.
        out_indices: Stages to return, 0 to 3 or -4 to -1, in ascending
            order; an int for one. Stages beyond the last are not built.
            Default: all four.
        drop_path_rate: Stochastic depth of the last block, rising linearly
            from 0 at the first. Default: the variant's own (0.02 for s,
            s_conv and mbconv_s, 0 for the others).
        layer_scale_init_value: Start of the layer scale of the modulation
            or MBConv blocks; 0 builds none. Default: 1e-4.
        final_norm: LayerNorm on the output of the last stage, which
            classification needs and the authors' dense models do without.
            Default: False.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages: no gradient and evaluation mode. Default: -1.
        norm_eval: Keep batch norms below this module in evaluation mode
            while training: those of ``reparam``, and what a user puts in. The
            plain variants have LayerNorm only, which is the same in both
            modes. Default: False.
        with_cp: Recompute each block in the backward pass to save memory.
            Default: False.
        reparam: Branches that run beside the 7x7 convolution of each
            modulation block while it is trained, each with a batch norm, and
            are merged into it afterwards: True for a 3x3 convolution and the
            identity, or a sequence of odd kernel sizes below 7 and
            ``'identity'``. Their batch norms start with weight 1, as in
            RepVGG and RepLKNet; weights of a plain variant start them with
            weight 0, so that the outputs are those of the plain variant.
            Default: None, which builds none.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a
            checkpoint of this project or of the authors strictly; see
            :func:`mmefficientmod.checkpoint.load_pretrained`.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.
        reparam: The branches at hand; none once they are merged.
        deployed: Whether it is folded for inference.

    Raises:
        ValueError: For an unknown arch, a malformed dict, an index or number
            of stages out of range, or branches that cannot be.

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

        self.stem = PatchEmbed(in_channels, dims[0], kernel_size=7, stride=4)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims[: self.num_built]):
            downsample = (
                PatchEmbed(dims[i - 1], dim, kernel_size=3, stride=2)
                if i
                else None
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
            self.stages.append(Stage(downsample, blocks, with_cp))
        self.norm = nn.LayerNorm(dims[-1]) if final_norm else None

        self.apply(init_linear)
        # At last, so that all else starts as in the plain variant.
        self.reparam = parse_reparam(reparam)
        self._add_branches()
        self._freeze_stages()

    def _add_branches(self) -> None:
        contexts = [m for m in self.modules() if isinstance(m, ContextBranch)]
        if self.reparam and not contexts:
            raise ValueError(
                f'reparam={self.reparam} is for modulation blocks, whose 7x7 '
                'convolution gets parallel branches, and this arch has none '
                '(MBConv and attention blocks take no branches)'
            )
        for context in contexts if self.reparam else ():
            channels = context.conv.in_channels
            context.branches = ParallelBranches(channels, self.reparam)
        # Their names, while no wrapper has put something in.
        self._branch_keys = {k for k in self.state_dict() if BRANCHES in k}

    def _rename_keys(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = rename_official_keys(weights)
        return weights | self.silent_branches(weights)

    def silent_branches(
        self, weights: Mapping[str, Tensor], prefix: str = ''
    ) -> dict[str, Tensor]:
        """What weights of the plain variant lack for one with branches.

        Args:
            weights: Those of a plain variant, to which branches are given
                that change nothing, or of one with branches like these.
            prefix: What the names in the weights begin with.

        Returns:
            Weights of the branches, with 0 in their batch norms; nothing if
            the weights have branches themselves.

        Raises:
            CheckpointError: If the weights have other branches.
        """
        later = tuple(
            f'stages.{i}.' for i in range(self.num_built, self.num_stages)
        )
        given = {
            k.removeprefix(prefix)
            for k in weights
            if k.startswith(prefix) and BRANCHES in k
        }
        given = {k for k in given if not k.startswith(later)}
        if given == self._branch_keys:
            return {}
        if given:
            raise CheckpointError(_branches_differ(given, self._branch_keys))
        silent = {}
        own = self.state_dict()
        for key in self._branch_keys:
            conv, _, part = key.partition(BRANCHES)
            if f'{prefix}{conv}.context.conv.weight' in weights:
                start = own[key]
                if '.norm.' in part:
                    variance = part.endswith('running_var')
                    start = torch.full_like(start, int(variance))
                silent[prefix + key] = start
        if silent:
            print_log(
                'the weights are those of a plain EfficientMod: its parallel '
                'branches start at zero',
                logger='current',
            )
        return silent

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        # Of those of a training, a folded one has more to say.
        if not self.deployed:
            state_dict.update(self.silent_branches(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def merge_branches(self) -> EfficientMod:
        """Merge the branches of ``reparam`` into the 7x7 convolutions.

        What is left is the plain variant with the same outputs in evaluation,
        which can be trained further.

        Returns:
            The module itself.

        Raises:
            RuntimeError: If one of these layers is more than its weights or
                has a hook, or a norm is no batch norm.
        """
        contexts = [
            m
            for m in self.modules()
            if isinstance(m, ContextBranch) and m.branches is not None
        ]
        for context in contexts:
            context.branches.check_mergeable(context.conv)
        for context in contexts:
            context.merge_branches()
        self.reparam, self._branch_keys = (), set()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Fold branches, norms and layer scale into the layers at hand.

        The branches of ``reparam`` go into the convolutions beside them, the
        affine parts of the norms into the layers behind them, the layer scale
        into the one before it.

        Raises:
            RuntimeError: If one of these layers is more than its weights,
                such as a LoRA or a quantised layer, or has a hook.
        """
        blocks = [b for stage in self.stages for b in stage.blocks]
        for layer in chain.from_iterable(b.folded_layers() for b in blocks):
            if not is_plain(layer):
                raise RuntimeError(
                    'switch_to_deploy() folds plain layers, and this '
                    f'{type(layer).__name__} is more than its weights, or '
                    'has a hook; merge it or take the hook off first'
                )
        self.merge_branches()
        for block in blocks:
            block.fold()


def fold_affine(norm: nn.LayerNorm, *linears: nn.Linear) -> None:
    """Move a norm's weight and bias into the linear layers that read it."""
    for linear in linears:
        shift = linear.weight @ norm.bias
        bias = shift if linear.bias is None else linear.bias + shift
        linear.bias = nn.Parameter(bias)
        linear.weight *= norm.weight
    # PyTorch 2.1 cannot export a norm without weight and bias to ONNX. These
    # stand in for them, in no checkpoint.
    for name, value in dict(weight=1.0, bias=0.0).items():
        constant = torch.full_like(getattr(norm, name).detach(), value)
        delattr(norm, name)
        norm.register_buffer(name, constant, persistent=False)


def parse_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variant, checked.

    Raises:
        ValueError: Naming what is wrong and what is possible.
    """
    settings = parse_variant(
        arch,
        {**ARCHS, **MBCONV_ARCHS},
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
    return settings
