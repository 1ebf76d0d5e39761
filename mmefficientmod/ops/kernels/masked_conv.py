"""Convolution at the places of a mask only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import check


def _check_places(
    op: str, ys: Tensor, xs: Tensor, height: int, width: int
) -> None:
    for places, size in ((ys, height), (xs, width)):
        if len(places):
            low, high = places.aminmax()
            check(
                low >= 0 and high < size,
                op,
                f'places {int(low)} to {int(high)} of the mask do not fit in '
                f'{height} x {width}; it must have the size of the output',
            )


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy the neighbourhoods of some places of an image into columns.

    Args:
        im (Tensor): ``(1, C, H, W)``.
        mask_h_idx (Tensor): Rows of the places, ``(P,)``, int64.
        mask_w_idx (Tensor): Columns of the places, ``(P,)``, int64.
        col (Tensor): Result, ``(C * kernel_h * kernel_w, P)``.
        kernel_h (int): Height of a neighbourhood.
        kernel_w (int): Width of a neighbourhood.
        pad_h (int): Rows of a neighbourhood above its place.
        pad_w (int): Columns of a neighbourhood left of its place.
    """
    op = 'masked_im2col'
    check(
        im.dim() == 4 and len(im) == 1,
        op,
        f'the image must be (1, C, H, W), got {tuple(im.shape)}',
    )
    channels, height, width = im.shape[1:]
    size = (channels * kernel_h * kernel_w, len(mask_h_idx))
    check(
        col.shape == size,
        op,
        f'columns must be {size}, got {tuple(col.shape)}',
    )
    _check_places(op, mask_h_idx, mask_w_idx, height, width)
    image = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    ys = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    xs = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(image[:, ys, xs].reshape(size))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write columns to some places of an image; the others do not change.

    Args:
        col (Tensor): ``(channels, P)``.
        mask_h_idx (Tensor): Rows of the places, ``(P,)``, int64.
        mask_w_idx (Tensor): Columns of the places, ``(P,)``, int64.
        im (Tensor): Result, ``(1, channels, height, width)``.
        height (int): Rows of the image.
        width (int): Columns of the image.
        channels (int): Channels.
    """
    op = 'masked_col2im'
    check(
        im.shape == (1, channels, height, width)
        and col.shape == (channels, len(mask_h_idx)),
        op,
        f'columns {tuple(col.shape)} at {len(mask_h_idx)} places do not go '
        f'with an image of {tuple(im.shape)}',
    )
    _check_places(op, mask_h_idx, mask_w_idx, height, width)
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
