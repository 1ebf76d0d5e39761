"""Pooling of regions of interest."""

import torch
import torchvision
from torch import Tensor

from .common import check, same_float


def _check_rois(
    op: str, images: Tensor, rois: Tensor, pooled: Tensor, size: tuple
) -> None:
    check(
        images.dim() == 4 and rois.dim() == 2 and rois.shape[1] == 5,
        op,
        'needs features (N, C, H, W) and RoIs (K, 5), got '
        f'{tuple(images.shape)} and {tuple(rois.shape)}',
    )
    expected = (len(rois), images.shape[1], *size)
    check(
        pooled.shape == expected,
        op,
        f'pooled features must be {expected}, got {tuple(pooled.shape)}',
    )
    # Checked on the CPU only: reading a GPU tensor would synchronise on each
    # call.
    if rois.is_cpu and len(rois):
        low, high = rois[:, 0].float().aminmax()
        check(
            low >= 0 and high < len(images),
            op,
            f'RoIs name images {int(low)} to {int(high)}, but the batch has '
            f'0 to {len(images) - 1}',
        )


def _check_roi_align(
    images: Tensor,
    rois: Tensor,
    pooled: Tensor,
    size: tuple,
    mode: int,
    aligned: bool,
) -> None:
    op = 'roi_align'
    if mode != 1:
        raise NotImplementedError(
            "roi_align: pool_mode='max' needs a compiled mmcv; use "
            "pool_mode='avg'"
        )
    _check_rois(op, images, rois, pooled, size)
    if aligned and rois.is_cpu:
        check(
            bool((rois[:, 3:] >= rois[:, 1:3]).all()),
            op,
            'each RoI must have x2 >= x1 and y2 >= y1, and no NaN',
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        rois (Tensor): ``(K, 5)``.
        output (Tensor): Result, ``(K, C, aligned_height, aligned_width)``.
        argmax_y (Tensor): Not used.
        argmax_x (Tensor): Not used.
        aligned_height (int): Rows of the result.
        aligned_width (int): Columns of the result.
        spatial_scale (float): Pixels of ``input`` per pixel of the image.
        sampling_ratio (int): Samples per cell along each axis. If 0 or less,
            the number of pixels that a cell covers, rounded up.
        pool_mode (int): Must be 1, the average of the samples.
        aligned (bool): Subtract half a pixel from the scaled coordinates; the
            legacy version does not.
    """
    size = (aligned_height, aligned_width)
    _check_roi_align(input, rois, output, size, pool_mode, aligned)
    input, rois = same_float('roi_align', input, rois)
    output.copy_(
        torchvision.ops.roi_align(
            input,
            rois,
            size,
            spatial_scale,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): ``(K, C, aligned_height, aligned_width)``.
        grad_input (Tensor): Result, ``(N, C, H, W)``.

    The other arguments are those of the forward pass.
    """
    size = (aligned_height, aligned_width)
    _check_roi_align(grad_input, rois, grad_output, size, pool_mode, aligned)
    grad_output, rois = same_float('roi_align', grad_output, rois)
    grad_input += torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois,
        spatial_scale,
        *size,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool: the maximum in each cell of an RoI.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        rois (Tensor): ``(K, 5)``, x2 and y2 inclusive.
        output (Tensor): Result, ``(K, C, pooled_height, pooled_width)``; 0
            in a cell without pixels.
        argmax (Tensor): Result, int32 of the same shape: position of the
            maximum, ``row * W + column``; -1 in a cell without pixels.
        pooled_height (int): Rows of the result.
        pooled_width (int): Columns of the result.
        spatial_scale (float): Pixels of ``input`` per pixel of the image.
    """
    size = (pooled_height, pooled_width)
    _check_rois('roi_pool', input, rois, output, size)
    input, rois = same_float('roi_pool', input, rois)

    def edges(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
        """First and last pixel of cells along an axis, ``(K, cells, 2)``."""
        step = (high - low)[:, None] / cells
        at = torch.arange(cells, device=low.device)
        first = (at * step + low[:, None]).floor().clamp(0, size)
        end = ((at + 1) * step + low[:, None]).ceil().clamp(0, size)
        return torch.stack([first, end - 1], -1)

    # torchvision rounds an RoI to whole pixels and then divides it into cells;
    # mmcv divides first. So each cell is given as an RoI in whole pixels.
    low = rois[:, 1:3] * spatial_scale
    high = (rois[:, 3:] + 1) * spatial_scale
    xs = edges(low[:, 0], high[:, 0], pooled_width, input.shape[3])
    ys = edges(low[:, 1], high[:, 1], pooled_height, input.shape[2])
    cells = rois.new_empty(len(rois), *size, 5)
    cells[..., 0] = rois[:, 0, None, None]
    cells[..., 1::2] = xs[:, None]
    cells[..., 2::2] = ys[:, :, None]
    pooled, places = torch.ops.torchvision.roi_pool(
        input, cells.flatten(0, 2), 1.0, 1, 1
    )
    empty = (cells[..., 1:3] > cells[..., 3:]).any(-1)
    empty |= (high <= low).any(1)[:, None, None]

    def to_rois(values: Tensor, fill: int) -> Tensor:
        values = values.reshape(*cells.shape[:3], input.shape[1])
        return values.masked_fill(empty[..., None], fill).permute(0, 3, 1, 2)

    output.copy_(to_rois(pooled, 0))
    argmax.copy_(to_rois(places, -1))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of :func:`roi_pool_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): ``(K, C, pooled_height, pooled_width)``.
        argmax (Tensor): Result of the forward pass.
        grad_input (Tensor): Result, ``(N, C, H, W)``.

    The other arguments are those of the forward pass.
    """
    size = (pooled_height, pooled_width)
    _check_rois('roi_pool', grad_input, rois, grad_output, size)
    check(
        argmax.shape == grad_output.shape,
        'roi_pool',
        f'argmax {tuple(argmax.shape)} is not of the shape of the gradient '
        f'{tuple(grad_output.shape)}',
    )
    grad_output, rois = same_float('roi_pool', grad_output, rois)
    grad_input += torch.ops.torchvision._roi_pool_backward(
        grad_output,
        rois,
        argmax.contiguous(),  # torchvision ignores its strides
        spatial_scale,
        *size,
        *grad_input.shape,
    )
