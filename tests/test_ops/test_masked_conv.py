"""Masked convolution."""

from types import ModuleType

import pytest
import torch
from formulas import uniform
from torch.testing import assert_close

from mmefficientmod.ops import kernels


@pytest.mark.parametrize('padding', [0, 1])
def test_masked_conv_agrees_with_formula(
    mmcv_ops: ModuleType, padding: int
) -> None:
    layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=padding).double()
    x, mask = uniform(1, 3, 6, 5), torch.zeros(1, 6, 5)
    mask[0, :3, :2] = torch.tensor([[1, 0], [1, 1], [0, 1]])
    with torch.no_grad():
        full, ours = layer(x), layer(x, mask)
    height, width = full.shape[2:]
    assert_close(ours, full * mask[:, None, :height, :width])


def test_empty_mask_gives_zeros(mmcv_ops: ModuleType) -> None:
    layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=1)
    assert not layer(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4)).any()


IMAGE, TARGET = torch.zeros(1, 2, 4, 4), torch.tensor([0, 5])
WRONG = {
    'masked_im2col: places': lambda: kernels.masked_im2col_forward(
        IMAGE, TARGET, TARGET, torch.zeros(18, 2), 3, 3, 1, 1
    ),
    'masked_col2im: columns': lambda: kernels.masked_col2im_forward(
        torch.zeros(3, 2), TARGET, TARGET, IMAGE, 4, 4, 2
    ),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
