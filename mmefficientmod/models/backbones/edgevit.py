"""EdgeViT, written from a description of the network.

Paper: Pan et al., "EdgeViTs: Competing Light-weight CNNs on Mobile Devices
with Vision Transformers", ECCV 2022, https://arxiv.org/abs/2205.03436. The
authors' code is https://github.com/saic-fi/edgevit (Apache-2.0). It links no
weights, so that only parameters and multiply-adds were compared: they are
equal.

As in EfficientMod, tensors inside a stage are channels-last,
``(N, H, W, C)``. A 1x1 convolution is a linear layer there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from mmefficientmod.models.layers.attention import self_attention
from mmefficientmod.models.layers.fast_path import (
    FastPath,
    may_run,
    mlp_layers,
)
from mmefficientmod.models.layers.layout import to_nchw_view, to_nhwc
from mmefficientmod.models.layers.tracing import is_traced_by_fx_or_jit
from mmefficientmod.registry import MODELS

# One line for each variant. One position of each window of
# sr_ratio x sr_ratio positions takes part in the attention of a stage.
ARCHS: dict[str, dict[str, Any]] = {
    'xxs': dict(
        dims=(36, 72, 144, 288), depths=(1, 1, 3, 2), head_dim=36,
        sr_ratios=(4, 2, 2, 1)),
    'xs': dict(
        dims=(48, 96, 240, 384), depths=(1, 1, 3, 1), head_dim=48,
        sr_ratios=(4, 2, 2, 1)),
    's': dict(
        dims=(48, 96, 240, 384), depths=(1, 2, 5, 3), head_dim=48,
        sr_ratios=(4, 2, 2, 1)),
}  # fmt: skip
MLP_RATIO = 4


class PatchEmbed(nn.Module):
    """``LayerNorm(Conv(x))``, of patches that do not overlap.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Side of a patch.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(in_channels, out_channels, stride, stride=stride)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C_in, H, W) -> (N, ceil(H/s), ceil(W/s), C_out)``.

        Incomplete patches at the bottom and on the right are padded with 0.
        """
        bottom, right = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        # No padding by 0, which would copy x, unless a graph for any size is
        # recorded.
        if is_traced_by_fx_or_jit(x) or bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.norm(to_nhwc(self.proj(x)))


class Mlp(nn.Module):
    """``fc2(GELU(fc1(x)))`` at each position.

    Args:
        dim: Channels C.
    """

    fast_path = FastPath(mlp_layers)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        if may_run(self, x):
            return self.fast_path(self, x)
        return self.fc2(F.gelu(self.fc1(x)))


class LocalAggregation(nn.Module):
    """Each position gathers its neighbourhood, by convolutions.

    Three residual steps: a depth-wise 3x3 convolution in place of a position
    embedding; ``fc2(DWConv5x5(fc1(BN(x))))``; ``mlp(BN(x))``.

    Args:
        dim: Channels C.
        drop_path: Probability of dropping the second or the third step for a
            sample.
    """

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.pos = depthwise_layer(dim, 3)
        self.norm1 = nn.BatchNorm2d(dim)
        self.fc1 = nn.Linear(dim, dim)
        self.conv = depthwise_layer(dim, 5)
        self.fc2 = nn.Linear(dim, dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        x = x + in_nchw(x, self.pos)
        local = in_nchw(self.fc1(in_nchw(x, self.norm1)), self.conv)
        x = x + self.drop_path(self.fc2(local))
        return x + self.drop_path(self.mlp(in_nchw(x, self.norm2)))


class SparseAttention(nn.Module):
    """Global attention among a few positions, spread over all.

    Multi-head attention among the delegates: the top-left position of each
    window. A depth-wise transposed convolution spreads their outputs over
    their windows, and a LayerNorm follows. If a window is one position, there
    is neither.

    Args:
        dim: Channels C.
        head_dim: Channels of a head.
        sr_ratio: Side of a window, in positions.
    """

    def __init__(self, dim: int, head_dim: int, sr_ratio: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.sr_ratio = sr_ratio
        self.qkv = nn.Linear(dim, 3 * dim)
        self.spread: nn.Module | None = None
        self.norm: nn.Module | None = None
        if sr_ratio > 1:
            self.spread = nn.ConvTranspose2d(
                dim, dim, sr_ratio, stride=sr_ratio, groups=dim
            )
            self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``, for ``norm(x)``.

        The windows at the bottom and on the right may be cut off. LayerNorm
        is per position, so only the delegates are normalised.
        """
        height, width = x.shape[1], x.shape[2]
        x = x[:, :: self.sr_ratio, :: self.sr_ratio]
        qkv = self.qkv(norm(x)).flatten(1, 2)
        out = self_attention(qkv, self.head_dim).reshape(x.shape)
        if self.spread is not None and self.norm is not None:
            out = self.spread(to_nchw_view(out))[:, :, :height, :width]
            out = self.norm(to_nhwc(out))
        return self.proj(out)


class Block(nn.Module):
    """Local aggregation, global sparse attention, local propagation.

    Args:
        dim: Channels C.
        head_dim: Channels of a head.
        sr_ratio: Side of a window of the attention. If it is 1, there is no
            local aggregation.
        drop_path: Probability of dropping a branch for a sample.
    """

    def __init__(
        self, dim: int, head_dim: int, sr_ratio: int, drop_path: float
    ) -> None:
        super().__init__()
        self.local = (
            LocalAggregation(dim, drop_path) if sr_ratio > 1 else nn.Identity()
        )
        self.pos = depthwise_layer(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SparseAttention(dim, head_dim, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        # Not in the local aggregation: its linear layers are 1x1 convolutions
        # in the authors' code, which keep PyTorch's initialisation. PyTorch
        # initialises a linear layer alike.
        self.attn.apply(init_linear)
        self.mlp.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, H, W, C) -> (N, H, W, C)``."""
        x = self.local(x)
        x = x + in_nchw(x, self.pos)
        x = x + self.drop_path(self.attn(x, self.norm1))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@ROOT_MODELS.register_module()
@MODELS.register_module()
class EdgeViT(PyramidBackbone):
    """EdgeViT backbone with a pyramid of outputs.

    Four stages at strides 4, 8, 16 and 32. An input of ``(N, C, H, W)`` of
    any size gives, for each level in ``out_indices``, a contiguous
    ``(N, dims[i], ceil(H / stride), ceil(W / stride))``.

    For multiples of 32 this is the network of the authors' code, which takes
    no other sizes. For others, incomplete patches of the image or of a
    feature map are padded with zeros at the bottom and on the right, and the
    windows of the attention are cut off at the edge of the map. Padding the
    image to a multiple of 32 instead would cost more, and positions outside
    the image would take part in the attention.

    Args:
        arch: Name of a variant (``xxs``, ``xs``, ``s``) or a dict with the
            keys ``dims``, ``depths``, ``head_dim`` (channels of a head; each
            of ``dims`` is a multiple of it) and ``sr_ratios`` (side of a
            window of the sparse attention, for each stage).
        in_channels: Channels of the image. Default: 3.
        out_indices: Stages to return, 0 to 3 or -4 to -1, in ascending
            order; an int selects one stage. Stages after the last of them
            are not built. Default: all four.
        drop_path_rate: Stochastic depth of the last block, rising linearly
            from 0 at the first. Default: 0.
        final_norm: Apply a BatchNorm to the output of the last stage, as
            classification needs. Default: False.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the
            first n stages: no gradients, and evaluation mode. Default: -1.
        norm_eval: Keep batch norms in evaluation mode while training.
            Default: False.
        with_cp: Recompute each block in the backward pass to save memory.
            Default: False.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a
            checkpoint of this project strictly; see
            :func:`mmefficientmod.checkpoint.load_pretrained`. Checkpoints of
            other projects do not fit: the authors publish none, and the names
            in their code are not known here.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level, in pixels.

    Raises:
        ValueError: For an unknown arch, a malformed dict or an index or
            number of stages out of range.

    Example:
        >>> model = EdgeViT('xxs')
        >>> [tuple(x.shape) for x in model(torch.rand(2, 3, 64, 96))]
        [(2, 36, 16, 24), (2, 72, 8, 12), (2, 144, 4, 6), (2, 288, 2, 3)]
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 's',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        final_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | Sequence[Mapping] | None = None,
    ) -> None:
        arch = parse_arch(arch)
        dims, head_dim = arch['dims'], arch['head_dim']
        super().__init__(
            dims, out_indices, final_norm, frozen_stages, norm_eval, init_cfg
        )
        rates = drop_path_rates(drop_path_rate, sum(arch['depths']))
        self.stem = PatchEmbed(in_channels, dims[0], stride=4)
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims[: self.num_built]):
            downsample = PatchEmbed(dims[i - 1], dim, stride=2) if i else None
            blocks = [
                Block(dim, head_dim, arch['sr_ratios'][i], next(rates))
                for _ in range(arch['depths'][i])
            ]
            self.stages.append(Stage(downsample, blocks, with_cp))
        self.norm = nn.BatchNorm2d(dims[-1]) if final_norm else None
        self._freeze_stages()

    def _final_norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        return in_nchw(x, norm)


def depthwise_layer(dim: int, kernel_size: int) -> nn.Conv2d:
    """A depth-wise convolution that keeps the size.

    Args:
        dim: Channels C.
        kernel_size: Side of the kernel; odd.
    """
    return nn.Conv2d(
        dim, dim, kernel_size, padding=kernel_size // 2, groups=dim
    )


def in_nchw(x: Tensor, module: nn.Module) -> Tensor:
    """Apply a convolution or a BatchNorm2d to ``(N, H, W, C)``.

    Returns:
        ``(N, H', W', C')``.
    """
    return to_nhwc(module(to_nchw_view(x)))


def parse_arch(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variant, checked.

    Args:
        arch: Name of a variant, or a dict of settings.

    Raises:
        ValueError: For an unknown variant or wrong settings; the message
            lists the possible ones.
    """
    settings = parse_variant(
        arch, ARCHS, 'EdgeViT', per_stage=('depths', 'sr_ratios'), defaults={}
    )
    head_dim = settings['head_dim']
    if any(dim % head_dim for dim in settings['dims']):
        raise ValueError(
            f'dims={tuple(settings["dims"])} of EdgeViT cannot be divided '
            f'into heads of {head_dim} channels; choose multiples of it'
        )
    return settings
