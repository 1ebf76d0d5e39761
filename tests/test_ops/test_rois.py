"""RoIs: RoIAlign and RoIPool."""

import math
from types import ModuleType

import pytest
import torch
from formulas import EMPTY, clamped_bilinear, indices, uniform
from torch.autograd import gradcheck
from torch.testing import assert_close

from mmefficientmod.ops import kernels

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 8.2],
        [1, 0.0, 0.0, 15.0, 11.0],
        [1, 4.2, 3.3, 5.1, 3.9],
        [0, -3.0, -2.0, 18.5, 14.5],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_agrees_with_formula(
    aligned: bool, sampling_ratio: int
) -> None:
    x, height, width = uniform(2, 2, 6, 8, low=-1), 2, 3
    images = x.tolist()
    expected = x.new_zeros(4, 2, height, width)
    for k, c in indices(4, 2):
        image, *box = ROIS[k].tolist()
        left, top, right, bottom = (v * 0.5 - 0.5 * aligned for v in box)
        cell_h, cell_w = bottom - top, right - left
        if not aligned:
            cell_h, cell_w = max(cell_h, 1), max(cell_w, 1)
        cell_h, cell_w = cell_h / height, cell_w / width
        rows = sampling_ratio or math.ceil(cell_h)
        columns = sampling_ratio or math.ceil(cell_w)
        for i, j in indices(height, width):
            samples = [
                clamped_bilinear(
                    images[int(image)][c],
                    top + cell_h * (i + (m + 0.5) / rows),
                    left + cell_w * (j + (n + 0.5) / columns),
                )
                for m, n in indices(rows, columns)
            ]
            expected[k, c, i, j] = sum(samples) / len(samples)
    output = torch.zeros_like(expected)
    kernels.roi_align_forward(
        x, ROIS, output, EMPTY, EMPTY, 2, 3, 0.5, sampling_ratio, 1, aligned
    )
    assert_close(output, expected)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_gradient_passes_gradcheck(
    mmcv_ops: ModuleType, aligned: bool, sampling_ratio: int
) -> None:
    x = uniform(2, 1, 6, 8).requires_grad_()
    layer = mmcv_ops.RoIAlign(
        (2, 3), 0.5, sampling_ratio=sampling_ratio, aligned=aligned
    )
    assert gradcheck(lambda x: layer(x, ROIS), x)


def test_roi_pool_agrees_with_formula() -> None:
    x, height, width = uniform(2, 2, 6, 8, low=-1), 3, 4
    # One RoI outside of the image, and one whose corners are swapped.
    outside = [[0, 40, 0, 44, 4], [0, 9, 9, 7, 7]]
    rois = torch.cat([ROIS, ROIS.new_tensor(outside)])
    expected = x.new_zeros(6, 2, height, width)
    places = torch.full(expected.shape, -1, dtype=torch.int32)
    for k, c, i, j in indices(*expected.shape):
        image, left, top, right, bottom = rois[k].tolist()
        left, top = left * 0.5, top * 0.5
        cell_h = ((bottom + 1) * 0.5 - top) / height
        cell_w = ((right + 1) * 0.5 - left) / width
        if cell_h <= 0 or cell_w <= 0:
            continue
        rows = range(
            max(math.floor(top + i * cell_h), 0),
            min(math.ceil(top + (i + 1) * cell_h), 6),
        )
        columns = range(
            max(math.floor(left + j * cell_w), 0),
            min(math.ceil(left + (j + 1) * cell_w), 8),
        )
        pixels = [
            (float(x[int(image), c, y, z]), -(y * 8 + z))
            for y in rows
            for z in columns
        ]
        if pixels:
            expected[k, c, i, j], place = max(pixels)
            places[k, c, i, j] = -place
    output, argmax = torch.ones_like(expected), torch.zeros_like(places)
    kernels.roi_pool_forward(x, rois, output, argmax, height, width, 0.5)
    assert_close(output, expected)
    assert_close(argmax, places)
    assert (argmax[4:] == -1).all()


def test_roi_pool_gradient_passes_gradcheck(mmcv_ops: ModuleType) -> None:
    # Values far apart: where the maximum changes, there is no derivative.
    x = torch.randperm(96).double().view(2, 1, 6, 8).requires_grad_()
    layer = mmcv_ops.RoIPool((2, 3), 0.5)
    assert gradcheck(lambda x: layer(x, ROIS), x)


def test_no_rois_give_empty_results(mmcv_ops: ModuleType) -> None:
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    rois = torch.zeros(0, 5)
    for layer in (mmcv_ops.RoIAlign(2), mmcv_ops.RoIPool(2)):
        output = layer(x, rois)
        assert output.shape == (0, 3, 2, 2)
        output.sum().backward()
        assert_close(x.grad, torch.zeros_like(x))


BOXES = torch.zeros(3, 4)
IMAGE, ROI, POOLED = (
    torch.zeros(1, 2, 4, 4),
    torch.tensor([[0.0, 0, 0, 2, 2]]),
    torch.zeros(1, 2, 2, 2),
)
ALIGN = (EMPTY, EMPTY, 2, 2, 1.0, 2, 1, True)
WRONG = {
    'roi_align: needs features': lambda: kernels.roi_align_forward(
        IMAGE, BOXES, POOLED, *ALIGN
    ),
    'roi_align: pooled': lambda: kernels.roi_align_forward(
        IMAGE, ROI, IMAGE, *ALIGN
    ),
    'roi_align: RoIs name images 3': lambda: kernels.roi_align_forward(
        IMAGE, ROI + 3, POOLED, *ALIGN
    ),
    'roi_align: each RoI': lambda: kernels.roi_align_forward(
        IMAGE, ROI.flip(1) * ROI.new_tensor([0, 1, 1, 1, 1]), POOLED, *ALIGN
    ),
    'roi_align: .*max.*compiled': lambda: kernels.roi_align_forward(
        IMAGE, ROI, POOLED, EMPTY, EMPTY, 2, 2, 1.0, 2, 0, True
    ),
    'roi_pool: pooled': lambda: kernels.roi_pool_forward(
        IMAGE, ROI, POOLED, POOLED.int(), 3, 2, 1.0
    ),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
