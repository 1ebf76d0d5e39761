"""Structural re-parameterisation of a depth-wise convolution.

While it is trained, small convolutions and the identity, each with a batch
norm, run beside the large kernel, and all are summed. Afterwards they are one
convolution of the large kernel again, since each is linear once its norm's
statistics stand. Of RepVGG (Ding et al., CVPR 2021,
https://arxiv.org/abs/2101.03697), for large kernels of RepLKNet (Ding et al.,
CVPR 2022, https://arxiv.org/abs/2203.06717) and RepViT (Wang et al., CVPR
2024, https://arxiv.org/abs/2307.09283). Here the large kernel keeps its bias
and has no norm, so that it is what it is in the plain model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn

from mmefficientmod.models.layers.depthwise import depthwise_conv
from mmefficientmod.models.layers.fast_path import is_plain

# A depth-wise 1x1 convolution is left out: before a batch norm it is the
# identity, up to its sign.
DEFAULT = (3, 'identity')
# The second is what a SyncBatchNorm becomes where there is no GPU.
BATCH_NORMS = (nn.BatchNorm2d, _BatchNormXd, nn.SyncBatchNorm)


def parse_reparam(
    reparam: bool | Sequence[int | str] | None, kernel_size: int = 7
) -> tuple[int | str, ...]:
    """The branches that an option asks for, checked.

    Args:
        reparam: None, False or nothing for none, True for :data:`DEFAULT`, or
            a sequence of kernel sizes and ``'identity'``.
        kernel_size: Of the convolution that they stand beside.

    Raises:
        ValueError: Naming what is wrong and what is possible.
    """
    if reparam is None or isinstance(reparam, bool):
        return DEFAULT if reparam else ()
    sizes = tuple(range(1, kernel_size, 2))
    possible = (*sizes, 'identity')
    if (
        isinstance(reparam, str)
        or not isinstance(reparam, Sequence)
        or any(type(x) not in (int, str) or x not in possible for x in reparam)
        or len(set(reparam)) < len(reparam)
    ):
        raise ValueError(
            f'reparam={reparam!r} names no branches: it is None, True, or a '
            f'sequence such as {DEFAULT}, of {", ".join(map(str, sizes))} '
            f"(odd kernel sizes below {kernel_size}) and 'identity', each "
            'once'
        )
    return tuple(reparam)


def name_of(kind: int | str) -> str:
    """What a branch is called in a state dict: ``3x3``, ``identity``."""
    return kind if isinstance(kind, str) else f'{kind}x{kind}'


def kinds_of(names: Iterable[str]) -> tuple[int | str, ...]:
    """The branches of these names, in a fixed order."""
    found = [
        int(match[1]) if (match := re.fullmatch(r'(\d+)x\1', name)) else name
        for name in set(names)
    ]
    return tuple(sorted(found, key=str))


class Branch(nn.Module):
    """``BN(DWConv(x))``, or ``BN(x)``.

    Args:
        dim: Channels C.
        kernel_size: Side of the depth-wise kernel; None for the identity.
    """

    def __init__(self, dim: int, kernel_size: int | None) -> None:
        super().__init__()
        self.conv = (
            nn.Conv2d(
                dim,
                dim,
                kernel_size,
                padding=kernel_size // 2,
                groups=dim,
                bias=False,
            )
            if kernel_size
            else None
        )
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        if self.conv is not None:
            x = depthwise_conv(x, self.conv)
        return self.norm(x)

    def as_convolution(self) -> tuple[Tensor, Tensor]:
        """Kernel ``(C, 1, k, k)`` and bias ``(C,)`` that do as it does.

        In evaluation, with the statistics at hand; in float64.
        """
        norm = self.norm
        deviation = (exact(norm.running_var) + norm.eps).sqrt()
        scale = exact(norm.weight) / deviation
        kernel = scale[:, None, None, None]
        if self.conv is not None:
            kernel = exact(self.conv.weight) * kernel
        return kernel, exact(norm.bias) - exact(norm.running_mean) * scale


class ParallelBranches(nn.ModuleDict):
    """The sum of branches that stand beside a depth-wise convolution.

    Args:
        dim: Channels C.
        kinds: Kernel sizes and ``'identity'``; see :func:`name_of`.
    """

    def __init__(self, dim: int, kinds: Sequence[int | str]) -> None:
        super().__init__()
        for kind in kinds:
            size = None if kind == 'identity' else kind
            self[name_of(kind)] = Branch(dim, size)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """``out`` plus what the branches make of ``x``, ``(N, C, H, W)``."""
        for branch in self.values():
            out = out + branch(x)
        return out

    def check_mergeable(self, conv: nn.Conv2d) -> None:
        """Refuse what the sum of kernels would not do the same as.

        Raises:
            RuntimeError: If a layer is more than its weights, or a norm no
                batch norm with statistics.
        """
        for branch in self.values():
            for layer in (conv, branch.conv):
                if layer is not None and not is_plain(layer):
                    raise RuntimeError(
                        'parallel branches are merged where layers are plain, '
                        f'and this {type(layer).__name__} is more than its '
                        'weights, or has a hook; merge it or take the hook '
                        'off first'
                    )
            norm = branch.norm
            if (
                not is_plain(norm, BATCH_NORMS)
                or norm.running_var is None
                or norm.weight is None
            ):
                raise RuntimeError(
                    'parallel branches are merged by the statistics of their '
                    f'batch norms, and this {type(norm).__name__} is no plain '
                    'batch norm with them'
                )

    @torch.no_grad()
    def merge_into(self, conv: nn.Conv2d) -> None:
        """Make the convolution do what it did in sum with the branches.

        Zero padding is what all kernels see at the borders, and comes before
        the norms, so that it is the same there, too.
        """
        weight, bias = exact(conv.weight), exact(conv.bias)
        for branch in self.values():
            kernel, shift = branch.as_convolution()
            margin = (weight.shape[-1] - kernel.shape[-1]) // 2
            weight = weight + F.pad(kernel, [margin] * 4)
            bias = bias + shift
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)


def exact(x: Tensor) -> Tensor:
    """A tensor in float64, which not every device has, but the CPU."""
    return x.detach().to('cpu', torch.float64)
