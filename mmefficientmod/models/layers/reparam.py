"""Structural re-parameterisation of a depth-wise convolution.

During training, small convolutions and the identity, each followed by a batch
norm, run in parallel to the large kernel, and the results are added. Before
inference all are merged into one convolution with the large kernel: with its
statistics fixed, each branch is linear. The idea is RepVGG's (Ding et al.,
CVPR 2021, https://arxiv.org/abs/2101.03697), for large kernels RepLKNet's
(Ding et al., CVPR 2022, https://arxiv.org/abs/2203.06717) and RepViT's (Wang
et al., CVPR 2024, https://arxiv.org/abs/2307.09283). Here the large kernel
keeps its bias and has no norm, as in the plain model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmefficientmod.models.layers.deploy import exact, fused_with_norm
from mmefficientmod.models.layers.plain import check_batch_norm, check_plain

# Without a depth-wise 1x1 convolution: it scales each channel, which the batch
# norm after it undoes, except for the sign. It would repeat the identity.
DEFAULT = (3, 'identity')


def parse_reparam(
    reparam: bool | Sequence[int | str] | None, kernel_size: int = 7
) -> tuple[int | str, ...]:
    """The branches of the option ``reparam``, checked.

    Args:
        reparam: None, False or an empty sequence for no branches, True for
            :data:`DEFAULT`, or a sequence of kernel sizes and
            ``'identity'``.
        kernel_size: Side of the large kernel.

    Raises:
        ValueError: For an unknown branch; the message lists the known ones.
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
            f'reparam={reparam!r} does not name branches; give None, True or '
            f'a sequence such as {DEFAULT}. Its entries may be '
            f'{", ".join(map(str, sizes))} (odd kernel sizes below '
            f"{kernel_size}) and 'identity', each once"
        )
    return tuple(reparam)


def name_of(kind: int | str) -> str:
    """The name of a branch in a state dict: ``3x3``, ``identity``."""
    return kind if isinstance(kind, str) else f'{kind}x{kind}'


def kinds_of(names: Iterable[str]) -> tuple[int | str, ...]:
    """The kernel sizes and ``'identity'`` of branch names, sorted."""
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
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return self.norm(x if self.conv is None else self.conv(x))

    def as_convolution(self) -> tuple[Tensor, Tensor]:
        """The depth-wise convolution that equals the branch in evaluation.

        Returns:
            Kernel ``(C, 1, k, k)`` and bias ``(C,)``, in float64.
        """
        kernel = (
            torch.ones_like(exact(self.norm.weight))[:, None, None, None]
            if self.conv is None
            else exact(self.conv.weight)
        )
        return fused_with_norm(kernel, None, self.norm)


class ParallelBranches(nn.ModuleDict):
    """The sum of branches that run beside a depth-wise convolution.

    Args:
        dim: Channels C.
        kinds: Kernel sizes and ``'identity'``; see :func:`name_of`.
    """

    def __init__(self, dim: int, kinds: Sequence[int | str]) -> None:
        super().__init__()
        for kind in kinds:
            size = None if isinstance(kind, str) else kind
            self[name_of(kind)] = Branch(dim, size)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W) -> (N, C, H, W)``."""
        return functools.reduce(torch.add, [b(x) for b in self.values()])

    def _branches(self) -> Iterable[Branch]:
        return cast('Iterable[Branch]', self.values())

    def check_mergeable(self, conv: nn.Conv2d) -> None:
        """Raise if merging would change the outputs.

        Args:
            conv: The convolution beside the branches.

        Raises:
            RuntimeError: If a convolution is not plain, or a norm is not a
                plain batch norm with weight and statistics.
        """
        for branch in self._branches():
            for layer in (conv, branch.conv):
                if layer is not None:
                    check_plain(layer, 'merging parallel branches')
            check_batch_norm(branch.norm, 'merging parallel branches')

    @torch.no_grad()
    def merge_into(self, conv: nn.Conv2d) -> None:
        """Change a convolution to the sum of itself and the branches.

        The sum is exact at the borders of the image as well: each kernel
        sees the same zero padding there, before any norm.
        """
        weight, bias = exact(conv.weight), exact(conv.bias)
        for branch in self._branches():
            kernel, shift = branch.as_convolution()
            margin = (weight.shape[-1] - kernel.shape[-1]) // 2
            weight = weight + F.pad(kernel, [margin] * 4)
            bias = bias + shift
        conv.weight.copy_(weight)
        cast(Tensor, conv.bias).copy_(bias)


class Reparameterisable(nn.Module):
    """A module whose depth-wise convolution may have parallel branches.

    Attributes:
        conv: The depth-wise convolution, with a bias.
        branches: The branches beside it during training; None in the plain
            variants, and after they were merged.
    """

    conv: nn.Conv2d
    branches: ParallelBranches | None

    def __init__(self) -> None:
        super().__init__()
        self.branches = None

    def merge_branches(self) -> None:
        """Merge the branches into the convolution and remove them."""
        if self.branches is not None:
            self.branches.merge_into(self.conv)
            # Deleted first; otherwise `branches` stays registered as a
            # module.
            del self.branches
            self.branches = None
