"""The stand-in for mmcv's compiled ops, against formulas written out here.

``kernels`` is tested directly, so these tests say the same where mmcv has
compiled ops; what goes through mmcv's own functions is skipped there.
"""

import importlib.util
import inspect
import math
import pkgutil
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mmefficientmod.ops import (
    OpNotServedError,
    install,
    is_standin,
    kernels,
    standin,
)

install()
pytest.importorskip('mmcv')
mmcv_ops = pytest.importorskip('mmcv.ops')

through_mmcv = pytest.mark.skipif(
    not is_standin(), reason='mmcv has compiled ops here'
)
DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason='needs a GPU'
            ),
        ],
    ),
]
EMPTY = torch.empty(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def uniform(*size: int, low: float = 0, high: float = 1) -> Tensor:
    return torch.rand(*size, dtype=torch.float64) * (high - low) + low


def random_boxes(count: int) -> Tensor:
    corner = uniform(count, 2, high=20)
    return torch.cat([corner, corner + uniform(count, 2, low=2, high=15)], 1)


def between_pixels(*size: int) -> Tensor:
    """Offsets at which bilinear interpolation has a derivative."""
    whole = torch.randint(-2, 2, size)
    return whole + uniform(*size, low=0.2, high=0.8)


# ---------------------------------------------------------------- formulas


def area(box: list[float], offset: int) -> float:
    return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)


def common_area(a: list[float], b: list[float], offset: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    return max(width, 0) * max(height, 0)


def iou(a: list[float], b: list[float], offset: int) -> float:
    common = common_area(a, b, offset)
    return common / (area(a, offset) + area(b, offset) - common)


def pixel(image: list[list[float]], y: int, x: int) -> float:
    inside = 0 <= y < len(image) and 0 <= x < len(image[0])
    return image[y][x] if inside else 0.0


def bilinear(image: list[list[float]], y: float, x: float) -> float:
    """Value between pixels; zero outside of the image."""
    top, left = math.floor(y), math.floor(x)
    return sum(
        pixel(image, top + dy, left + dx)
        * (1 - abs(y - top - dy))
        * (1 - abs(x - left - dx))
        for dy, dx in product((0, 1), (0, 1))
    )


def clamped_bilinear(image: list[list[float]], y: float, x: float) -> float:
    """Value between pixels; the border goes on for one pixel, then zero."""
    height, width = len(image), len(image[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    return bilinear(image, y, x)


def indices(*size: int) -> Iterator[tuple[int, ...]]:
    return product(*map(range, size))


def naive_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    images, weights = x.tolist(), weight.tolist()
    batch, channels = x.shape[:2]
    outputs, per_group, *kernel = weight.shape
    height, width = offset.shape[2:]
    result = x.new_zeros(batch, outputs, height, width)
    for n, o, h, w in indices(*result.shape):
        total = 0.0
        for c, i, j in indices(per_group, *kernel):
            channel = o // (outputs // groups) * per_group + c
            tap = channel // (channels // offset_groups) * kernel[0]
            tap = (tap + i) * kernel[1] + j
            dy, dx = offset[n, 2 * tap : 2 * tap + 2, h, w].tolist()
            y = h * stride[0] - padding[0] + i * dilation[0] + dy
            z = w * stride[1] - padding[1] + j * dilation[1] + dx
            factor = 1.0 if mask is None else float(mask[n, tap, h, w])
            value = bilinear(images[n][channel], y, z)
            total += weights[o][c][i][j] * factor * value
        result[n, o, h, w] = total
    return result


# ------------------------------------------------- every op, in one calling


def call_nms(cast: Callable) -> list[Tensor]:
    boxes, scores = cast(random_boxes(30)), cast(uniform(30))
    return [kernels.nms(boxes, scores, iou_threshold=0.4, offset=1)]


def call_softnms(cast: Callable) -> list[Tensor]:
    boxes, scores = cast(random_boxes(30)), cast(uniform(30))
    dets = torch.zeros_like(cast(torch.zeros(30, 5)))
    inds = kernels.softnms(
        boxes,
        scores,
        dets,
        iou_threshold=0.3,
        sigma=0.5,
        min_score=0.05,
        method=1,
        offset=0,
    )
    return [inds, dets]


def call_bbox_overlaps(cast: Callable) -> list[Tensor]:
    ious = cast(torch.zeros(5, 7))
    first, second = cast(random_boxes(5)), cast(random_boxes(7))
    kernels.bbox_overlaps(first, second, ious, 0, aligned=False, offset=1)
    return [ious]


ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 9.7, 8.2],
        [1, 0.0, 0.0, 15.0, 11.0],
        [1, 4.2, 3.3, 5.1, 3.9],
        [0, -3.0, -2.0, 18.5, 14.5],
    ],
    dtype=torch.float64,
)


def call_roi_align(cast: Callable) -> list[Tensor]:
    x, rois = cast(uniform(2, 3, 6, 8, low=-1)), cast(ROIS)
    output, grad = cast(torch.zeros(4, 3, 2, 3)), cast(torch.zeros(x.shape))
    grad_output = cast(uniform(4, 3, 2, 3))
    options = {
        'aligned_height': 2,
        'aligned_width': 3,
        'spatial_scale': 0.5,
        'sampling_ratio': 2,
        'pool_mode': 1,
        'aligned': True,
    }
    kernels.roi_align_forward(x, rois, output, EMPTY, EMPTY, **options)
    kernels.roi_align_backward(
        grad_output, rois, EMPTY, EMPTY, grad, **options
    )
    return [output, grad]


def call_roi_pool(cast: Callable) -> list[Tensor]:
    x, rois = cast(uniform(2, 3, 6, 8, low=-1)), cast(ROIS)
    output, grad = cast(torch.zeros(4, 3, 2, 3)), cast(torch.zeros(x.shape))
    argmax = torch.zeros(output.shape, dtype=torch.int32, device=x.device)
    grad_output = cast(uniform(4, 3, 2, 3))
    options = {'pooled_height': 2, 'pooled_width': 3, 'spatial_scale': 0.5}
    kernels.roi_pool_forward(x, rois, output, argmax, **options)
    kernels.roi_pool_backward(grad_output, rois, argmax, grad, **options)
    return [output, argmax, grad]


DEFORM = {
    'kW': 2,
    'kH': 3,
    'dW': 1,
    'dH': 2,
    'padW': 1,
    'padH': 0,
    'dilationW': 2,
    'dilationH': 1,
    'group': 2,
    'deformable_group': 2,
    'im2col_step': 1,
}


def call_deform_conv(cast: Callable) -> list[Tensor]:
    x, weight = cast(uniform(2, 4, 5, 4, low=-1)), cast(uniform(4, 2, 3, 2))
    offset = cast(between_pixels(2, 24, 2, 4))
    output = cast(torch.zeros(2, 4, 2, 4))
    grad_output = cast(uniform(2, 4, 2, 4))
    grads = [cast(torch.zeros(t.shape)) for t in (x, offset, weight)]
    kernels.deform_conv_forward(
        x, weight, offset, output, EMPTY, EMPTY, **DEFORM
    )
    kernels.deform_conv_backward_input(
        x, offset, grad_output, *grads[:2], weight, EMPTY, **DEFORM
    )
    kernels.deform_conv_backward_parameters(
        x, offset, grad_output, grads[2], EMPTY, EMPTY, scale=2, **DEFORM
    )
    return [output, *grads]


MODULATED = {
    'kernel_h': 3,
    'kernel_w': 2,
    'stride_h': 2,
    'stride_w': 1,
    'pad_h': 0,
    'pad_w': 1,
    'dilation_h': 1,
    'dilation_w': 2,
    'group': 2,
    'deformable_group': 2,
    'with_bias': True,
}


def call_modulated_deform_conv(cast: Callable) -> list[Tensor]:
    x, weight = cast(uniform(2, 4, 5, 4, low=-1)), cast(uniform(4, 2, 3, 2))
    offset, mask = (
        cast(between_pixels(2, 24, 2, 4)),
        cast(uniform(2, 12, 2, 4)),
    )
    bias, grad_output = cast(uniform(4)), cast(uniform(2, 4, 2, 4))
    output = cast(torch.zeros(2, 4, 2, 4))
    inputs = (x, weight, bias, offset, mask)
    grads = [cast(torch.zeros(t.shape)) for t in inputs]
    kernels.modulated_deform_conv_forward(
        x, weight, bias, EMPTY, offset, mask, output, EMPTY, **MODULATED
    )
    kernels.modulated_deform_conv_backward(
        x,
        weight,
        bias,
        EMPTY,
        offset,
        mask,
        EMPTY,
        *grads,
        grad_output,
        **MODULATED,
    )
    return [output, *grads]


def call_sigmoid_focal_loss(cast: Callable) -> list[Tensor]:
    x, weight = cast(uniform(6, 3, low=-4, high=4)), cast(uniform(3))
    target = torch.tensor([0, 1, 2, 2, 0, 1], device=x.device)
    output, grad = cast(torch.zeros(6, 3)), cast(torch.zeros(6, 3))
    options = {'gamma': 2.0, 'alpha': 0.25}
    kernels.sigmoid_focal_loss_forward(x, target, weight, output, **options)
    kernels.sigmoid_focal_loss_backward(x, target, weight, grad, **options)
    return [output, grad]


def call_softmax_focal_loss(cast: Callable) -> list[Tensor]:
    x, weight = (
        cast(uniform(6, 3, low=-4, high=4).softmax(1)),
        cast(uniform(3)),
    )
    target = torch.tensor([0, 1, 2, -1, 0, 1], device=x.device)
    output, buff = cast(torch.zeros(6)), cast(torch.zeros(6))
    grad = cast(torch.zeros(6, 3))
    options = {'gamma': 2.0, 'alpha': 0.25}
    kernels.softmax_focal_loss_forward(x, target, weight, output, **options)
    kernels.softmax_focal_loss_backward(
        x, target, weight, buff, grad, **options
    )
    return [output, buff, grad]


def call_masked_conv(cast: Callable) -> list[Tensor]:
    x, col = cast(uniform(1, 2, 4, 5)), cast(torch.zeros(12, 3))
    rows = torch.tensor([0, 3, 2], device=x.device)
    columns = torch.tensor([0, 4, 1], device=x.device)
    kernels.masked_im2col_forward(
        x, rows, columns, col, kernel_h=3, kernel_w=2, pad_h=1, pad_w=1
    )
    image = cast(torch.ones(1, 12, 4, 5))
    kernels.masked_col2im_forward(
        col, rows, columns, image, height=4, width=5, channels=12
    )
    return [col, image]


SHAPES = torch.tensor([[3, 4], [2, 2]])
STARTS = torch.tensor([0, 12])


def call_ms_deform_attn(cast: Callable) -> list[Tensor]:
    value = cast(uniform(2, 16, 2, 3))
    locations = cast(uniform(2, 5, 2, 2, 3, 2, low=-0.2, high=1.2))
    weights = cast(uniform(2, 5, 2, 2, 3))
    grad_output = cast(uniform(2, 5, 6))
    inputs = (value, SHAPES.to(value.device), STARTS.to(value.device))
    inputs += (locations, weights)
    output = kernels.ms_deform_attn_forward(*inputs, im2col_step=64)
    results = (value, locations, weights)
    grads = [cast(torch.zeros(t.shape)) for t in results]
    kernels.ms_deform_attn_backward(
        *inputs, grad_output, *grads, im2col_step=64
    )
    return [output, *grads]


CALLS = {
    name.removeprefix('call_'): function
    for name, function in list(globals().items())
    if name.startswith('call_')
}


def test_every_op_is_called_here() -> None:
    reports = {'get_compiler_version', 'get_compiling_cuda_version'}
    for name in set(kernels.__all__) - reports - {'nms_match'}:
        assert name.startswith((*CALLS, 'masked_'))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('op', CALLS)
def test_half_precision_is_float32_rounded(
    op: str, dtype: torch.dtype, device: str
) -> None:
    half = CALLS[op](lambda t: t.to(device, dtype))
    torch.manual_seed(0)
    full = CALLS[op](lambda t: t.to(device, dtype).float())
    for ours, exact in zip(half, full, strict=True):
        if exact.is_floating_point():
            assert ours.dtype == dtype
        assert_close(ours, exact.to(ours.dtype))


@pytest.mark.parametrize('op', CALLS)
def test_layout_in_memory_does_not_matter(op: str) -> None:
    def spread(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor + 7], -1)[..., 0]

    expected = CALLS[op](lambda t: t)
    torch.manual_seed(0)
    assert not spread(torch.ones(2, 3)).is_contiguous()
    for ours, reference in zip(CALLS[op](spread), expected, strict=True):
        assert_close(ours, reference, check_dtype=False)


@pytest.mark.parametrize('device', DEVICES[1:])
@pytest.mark.parametrize('op', CALLS)
def test_gpu_agrees_with_cpu(op: str, device: str) -> None:
    on_cpu = CALLS[op](lambda t: t.double())
    torch.manual_seed(0)
    on_gpu = CALLS[op](lambda t: t.to(device).double())
    for ours, reference in zip(on_gpu, on_cpu, strict=True):
        assert_close(ours.cpu(), reference)


# ------------------------------------------------------------------- boxes


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nms(dtype: torch.dtype, offset: int) -> None:
    boxes, scores = random_boxes(40).to(dtype), uniform(40).to(dtype)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        box = boxes[i].tolist()
        if all(iou(boxes[k].tolist(), box, offset) <= 0.3 for k in kept):
            kept.append(i)
    assert 3 < len(kept) < 37
    ours = kernels.nms(boxes, scores, iou_threshold=0.3, offset=offset)
    assert ours.tolist() == kept


def test_nms_offset_decides() -> None:
    # Without the offset these overlap by 1 / 3, with it by 2 / 4 = 0.5.
    boxes = torch.tensor([[0.0, 0, 2, 0.5], [1, 0, 3, 0.5]])
    scores = torch.tensor([0.9, 0.8])
    assert len(kernels.nms(boxes, scores, 0.4, 0)) == 2
    assert len(kernels.nms(boxes, scores, 0.4, 1)) == 1


def test_nms_keeps_a_box_exactly_at_the_threshold() -> None:
    # IoU 3 / 5; as a float, 0.6 is more than the double 0.6.
    boxes = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]])
    assert len(kernels.nms(boxes, torch.tensor([0.9, 0.8]), 0.6, 0)) == 2


@through_mmcv
def test_batched_nms_through_mmcv() -> None:
    boxes, scores = random_boxes(40).float(), uniform(40).float()
    labels = torch.arange(40) % 3
    config = {'type': 'nms', 'iou_threshold': 0.3}
    dets, kept = mmcv_ops.batched_nms(boxes, scores, labels, config)
    expected = []
    for label in range(3):
        members = (labels == label).nonzero()[:, 0]
        inds = mmcv_ops.nms(boxes[members], scores[members], 0.3)[1]
        expected += members[inds].tolist()
    assert sorted(kept.tolist()) == sorted(expected)
    assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def naive_softnms(
    boxes: list, scores: list, method: int, offset: int
) -> tuple[list[int], list[float]]:
    left = list(range(len(boxes)))
    scores = list(scores)
    kept = []
    while left:
        best = max(left, key=lambda i: scores[i])
        kept.append(best)
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 2:
                scores[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                scores[i] *= 1 - overlap if method == 1 else 0
        left = [i for i in left if scores[i] >= 0.1]
    return kept, [scores[i] for i in kept]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_softnms(dtype: torch.dtype, method: int, offset: int) -> None:
    boxes, scores = random_boxes(40).to(dtype), uniform(40).to(dtype)
    before = boxes.clone(), scores.clone()
    dets = torch.full((40, 5), -7.0, dtype=dtype)
    inds = kernels.softnms(boxes, scores, dets, 0.3, 0.5, 0.1, method, offset)
    kept, new_scores = naive_softnms(
        boxes.tolist(), scores.tolist(), method, offset
    )
    assert inds.tolist() == kept
    assert 3 < len(kept) < 40
    new = torch.tensor(new_scores, dtype=dtype)[:, None]
    assert_close(dets[: len(kept)], torch.cat([boxes[kept], new], 1))
    assert_close(dets[len(kept) :], torch.full_like(dets[len(kept) :], -7))
    assert_close((boxes, scores), before, rtol=0, atol=0)


def test_softnms_order_of_equal_scores_is_that_of_mmcv() -> None:
    # Boxes 1 and 2 fall to box 0; 5 and 4, the last ones, take their places.
    corner = torch.tensor([0.0, 0, 0, 100, 200, 300])
    boxes = torch.stack([corner, corner, corner + 9, corner + 9], 1)
    scores = torch.tensor([0.9, 0.8, 0.8, 0.5, 0.5, 0.5])
    inds = kernels.softnms(
        boxes, scores, torch.zeros(6, 5), 0.3, 0.5, 0.1, 0, 0
    )
    assert inds.tolist() == [0, 5, 4, 3]


@through_mmcv
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_through_mmcv(method: str) -> None:
    boxes, scores = random_boxes(20).float(), uniform(20).float()
    dets, inds = mmcv_ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.1, method=method
    )
    number = ['naive', 'linear', 'gaussian'].index(method)
    kept, new = naive_softnms(boxes.tolist(), scores.tolist(), number, 0)
    assert inds.tolist() == kept
    assert_close(dets[:, :4], boxes[kept])
    assert_close(dets[:, 4], torch.tensor(new))


def test_nms_match() -> None:
    dets = torch.cat([random_boxes(30), uniform(30, 1)], 1)
    left = dets[:, 4].argsort(descending=True).tolist()
    expected = []
    while left:
        best = dets[left[0], :4].tolist()
        hit = [left[0]]
        for i in left[1:]:
            if iou(best, dets[i, :4].tolist(), 0) >= 0.3:
                hit.append(i)
        left = [i for i in left if i not in hit]
        expected.append(hit)
    assert any(len(group) > 2 for group in expected)
    assert kernels.nms_match(dets, iou_threshold=0.3) == expected
    assert kernels.nms_match(dets[:0], iou_threshold=0.3) == []


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', [0, 1])
@pytest.mark.parametrize('aligned', [False, True])
def test_bbox_overlaps(aligned: bool, mode: int, offset: int) -> None:
    first, second = random_boxes(4), random_boxes(4)
    table = uniform(4, 4)
    for i, j in indices(4, 4):
        a, b = first[i].tolist(), second[j].tolist()
        over_first = common_area(a, b, offset) / area(a, offset)
        table[i, j] = over_first if mode else iou(a, b, offset)
    expected = table.diagonal() if aligned else table
    ours = torch.zeros_like(expected)
    kernels.bbox_overlaps(first, second, ours, mode, aligned, offset)
    assert_close(ours, expected)
    if is_standin():
        name = ['iou', 'iof'][mode]
        ours = mmcv_ops.bbox_overlaps(first, second, name, aligned, offset)
        assert_close(ours, expected)


# -------------------------------------------------------------------- RoIs


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align(aligned: bool, sampling_ratio: int) -> None:
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


@through_mmcv
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_gradient(aligned: bool, sampling_ratio: int) -> None:
    x = uniform(2, 1, 6, 8).requires_grad_()
    layer = mmcv_ops.RoIAlign(
        (2, 3), 0.5, sampling_ratio=sampling_ratio, aligned=aligned
    )
    assert gradcheck(lambda x: layer(x, ROIS), x)


def test_roi_pool() -> None:
    x, height, width = uniform(2, 2, 6, 8, low=-1), 3, 4
    # An RoI outside of the image has no pixels, one turned over no size.
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


@through_mmcv
def test_roi_pool_gradient() -> None:
    # Pixels far apart: a maximum that changes has no derivative.
    x = torch.randperm(96).double().view(2, 1, 6, 8).requires_grad_()
    layer = mmcv_ops.RoIPool((2, 3), 0.5)
    assert gradcheck(lambda x: layer(x, ROIS), x)


# -------------------------------------------------- deformable convolution

CONVS = [
    # stride, padding, dilation, groups, deformable groups
    ((1, 1), (0, 0), (1, 1), 1, 1),
    ((2, 1), (1, 0), (1, 2), 2, 1),
    ((1, 2), (0, 1), (2, 1), 1, 2),
    ((2, 2), (1, 1), (1, 1), 4, 4),
]


def conv_tensors(
    stride: tuple, padding: tuple, dilation: tuple, groups: int, deform: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, offset and mask of a kernel of 3 x 2."""
    x = uniform(2, 4, 5, 4, low=-1)
    weight = uniform(4, 4 // groups, 3, 2, low=-1)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            (5, 4), (3, 2), stride, padding, dilation, strict=True
        )
    ]
    offset = between_pixels(2, deform * 12, *size)
    return x, weight, offset, uniform(2, deform * 6, *size)


@through_mmcv
@pytest.mark.parametrize('conv', CONVS)
def test_deform_conv(conv: tuple) -> None:
    x, weight, offset, _ = conv_tensors(*conv)
    apply = mmcv_ops.deform_conv2d
    output = apply(x, offset, weight, *conv)
    assert_close(output, naive_conv(x, weight, offset, None, *conv))
    # One image at a time is the same as all at once.
    assert_close(apply(x, offset, weight, *conv, False, 1), output)
    inputs = [t.requires_grad_() for t in (x[:1], offset[:1], weight)]
    assert gradcheck(lambda *t: apply(*t, *conv), inputs)


@through_mmcv
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('conv', CONVS)
def test_modulated_deform_conv(conv: tuple, with_bias: bool) -> None:
    x, weight, offset, mask = conv_tensors(*conv)
    bias = uniform(4) if with_bias else None
    apply = mmcv_ops.modulated_deform_conv2d
    expected = naive_conv(x, weight, offset, mask, *conv)
    if with_bias:
        expected = expected + bias[:, None, None]
    assert_close(apply(x, offset, mask, weight, bias, *conv), expected)
    inputs = [t.requires_grad_() for t in (x[:1], offset[:1], mask[:1])]
    inputs += [weight.requires_grad_(), bias]
    if with_bias:
        bias.requires_grad_()
    assert gradcheck(lambda *t: apply(*t, *conv), inputs)


@through_mmcv
def test_modulated_deform_conv_reads_the_beginning_of_larger_offsets() -> None:
    # DyHead gives a level the offsets of the finer one below it.
    conv = ((1, 1), (1, 1), (1, 1), 1, 1)
    x, weight = uniform(2, 2, 3, 2, low=-1), uniform(2, 2, 3, 3, low=-1)
    offset, mask = between_pixels(2, 18, 6, 4), uniform(2, 9, 6, 4)
    read = [t.flatten(1)[:, : t.shape[1] * 6] for t in (offset, mask)]
    read = [t.reshape(2, -1, 3, 2) for t in read]

    def apply(offset: Tensor, mask: Tensor) -> Tensor:
        return mmcv_ops.modulated_deform_conv2d(
            x, offset, mask, weight, None, *conv
        )

    assert_close(apply(offset, mask), naive_conv(x, weight, *read, *conv))
    inputs = [t[:1].requires_grad_() for t in (offset, mask)]
    x = x[:1]
    assert gradcheck(apply, inputs)
    with pytest.raises(ValueError, match='offset must be'):
        apply(offset[:1, :, :1], mask[:1])


def test_gradient_of_deform_conv_is_added_and_scaled() -> None:
    x, weight, offset, _ = conv_tensors((2, 1), (0, 1), (1, 2), 2, 2)
    grad_output = uniform(2, 4, 2, 4)
    grads = [torch.zeros_like(weight), torch.ones_like(weight)]
    for scale, grad in zip((1, 3), grads, strict=True):
        kernels.deform_conv_backward_parameters(
            x, offset, grad_output, grad, EMPTY, EMPTY, scale=scale, **DEFORM
        )
    assert_close(grads[1], 1 + 3 * grads[0])


def test_offsets_of_taps_one_pixel_outside_have_no_gradient() -> None:
    x, weight = uniform(1, 1, 4, 4, low=1, high=2), uniform(1, 1, 3, 3, low=1)
    offset, grads = x.new_zeros(1, 18, 4, 4), x.new_ones(1, 18, 4, 4)
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3}
    kernels.deform_conv_backward_input(
        x,
        offset,
        torch.ones_like(x),
        torch.zeros_like(x),
        grads,
        weight,
        EMPTY,
        **options,
    )
    grads = grads.view(3, 3, 2, 4, 4)
    # Kernel row 0 over output row 0 is row -1 of the image; so for columns.
    assert not grads[0, :, :, 0, :].any()
    assert not grads[:, 0, :, :, 0].any()
    assert grads[1:, 1:, :, :3, :3].all()
    assert grads[0, 1:, :, 1:3, :3].all()


@through_mmcv
def test_deformable_layers_start_as_convolutions() -> None:
    x = uniform(2, 4, 6, 5).float()
    plain = mmcv_ops.DeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    expected = torch.nn.functional.conv2d(x, plain.weight, padding=1)
    assert_close(plain(x), expected)
    layer = mmcv_ops.ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=1)
    expected = torch.nn.functional.conv2d(
        x, layer.weight * 0.5, layer.bias, stride=2, padding=1
    )
    assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.conv_offset.weight.grad.any()


# -------------------------------------------------------------- focal loss


@through_mmcv
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_sigmoid_focal_loss(gamma: float, weighted: bool) -> None:
    x, classes = uniform(4, 3, low=-4, high=4), 3
    # Without class weights a target of 3 is the background.
    target = torch.tensor([0, 2, 1, 2 if weighted else 3])
    weight = uniform(3) if weighted else None
    expected = torch.zeros_like(x)
    for n, c in indices(4, classes):
        p = 1 / (1 + math.exp(-float(x[n, c])))
        if target[n] == c:
            loss = -0.25 * (1 - p) ** gamma * math.log(p)
        else:
            loss = -0.75 * p**gamma * math.log(1 - p)
        expected[n, c] = loss * (weight[target[n]] if weighted else 1)
    apply = mmcv_ops.sigmoid_focal_loss
    assert_close(apply(x, target, gamma, 0.25, weight, 'none'), expected)
    mean = mmcv_ops.SigmoidFocalLoss(gamma, 0.25, weight)
    assert_close(mean(x, target), expected.sum() / 4)
    x.requires_grad_()
    for reduction in ('none', 'sum', 'mean'):
        if reduction == 'none':
            # mmcv multiplies the gradient, which is right for any.
            expected = expected.sum()

        def loss(x: Tensor, reduction: str = reduction) -> Tensor:
            return apply(x, target, gamma, 0.25, weight, reduction)

        assert gradcheck(loss, x)


def test_sigmoid_focal_loss_of_large_logits_is_finite() -> None:
    x, target = torch.tensor([[200.0, -200.0]]), torch.tensor([1])
    output, grad = torch.zeros(1, 2), torch.zeros(1, 2)
    kernels.sigmoid_focal_loss_forward(x, target, EMPTY, output, 2.0, 0.25)
    kernels.sigmoid_focal_loss_backward(x, target, EMPTY, grad, 2.0, 0.25)
    least = -math.log(torch.finfo(torch.float32).tiny)
    assert_close(output, torch.tensor([[0.75 * least, 0.25 * least]]))
    assert_close(grad, torch.tensor([[0.75, -0.25]]))


@through_mmcv
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss(weighted: bool) -> None:
    x, target = uniform(4, 3, low=-4, high=4), torch.tensor([0, 2, -1, 1])
    weight = uniform(3) if weighted else None
    expected = []
    for row, label in zip(x.tolist(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        factor = float(weight[label]) if weighted else 1
        loss = -0.25 * (1 - p) ** 2 * math.log(p) * factor
        expected.append(loss if label >= 0 else 0)
    apply = mmcv_ops.softmax_focal_loss
    ours = apply(x, target, 2.0, 0.25, weight, 'none')
    assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    x.requires_grad_()
    assert gradcheck(lambda x: apply(x, target, 2.0, 0.25, weight, 'sum'), x)


# ------------------------------------------------------ masked convolution


@through_mmcv
@pytest.mark.parametrize('padding', [0, 1])
def test_masked_conv(padding: int) -> None:
    layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=padding).double()
    x, mask = uniform(1, 3, 6, 5), torch.zeros(1, 6, 5)
    mask[0, :3, :2] = torch.tensor([[1, 0], [1, 1], [0, 1]])
    with torch.no_grad():
        full, ours = layer(x), layer(x, mask)
    height, width = full.shape[2:]
    assert_close(ours, full * mask[:, None, :height, :width])


# ---------------------------------------- multi-scale deformable attention


def attention_tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (between pixels) and weights, on SHAPES."""
    locations = between_pixels(1, 3, 2, 2, 2, 2) + 1
    sizes = SHAPES.flip(1).view(1, 1, 1, 2, 1, 2)
    return (
        uniform(1, 16, 2, 3),
        (locations + 0.5) / sizes,
        uniform(1, 3, 2, 2, 2),
    )


def test_ms_deform_attn() -> None:
    value, locations, weights = attention_tensors()
    expected = value.new_zeros(1, 3, 2, 3)
    for q, m, d, level, p in indices(3, 2, 3, 2, 2):
        height, width = SHAPES[level].tolist()
        start = int(STARTS[level])
        image = value[0, start : start + height * width, m, d]
        at_x, at_y = locations[0, q, m, level, p].tolist()
        expected[0, q, m, d] += float(weights[0, q, m, level, p]) * bilinear(
            image.view(height, width).tolist(),
            at_y * height - 0.5,
            at_x * width - 0.5,
        )
    ours = kernels.ms_deform_attn_forward(
        value, SHAPES, STARTS, locations, weights, im2col_step=64
    )
    assert_close(ours, expected.flatten(2))


@through_mmcv
def test_ms_deform_attn_gradient() -> None:
    module = importlib.import_module('mmcv.ops.multi_scale_deform_attn')
    inputs = [t.requires_grad_() for t in attention_tensors()]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return module.MultiScaleDeformableAttnFunction.apply(
            value, SHAPES, STARTS, locations, weights, 64
        )

    assert gradcheck(attend, inputs)


# ------------------------------------------------------------ nothing to do


def test_no_boxes() -> None:
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    assert kernels.nms(boxes, scores, 0.5, 1).tolist() == []
    inds = kernels.softnms(
        boxes, scores, torch.zeros(0, 5), 0.3, 0.5, 0.1, 1, 0
    )
    assert inds.tolist() == []
    assert inds.dtype == torch.int64
    kernels.bbox_overlaps(
        boxes, torch.zeros(3, 4), torch.zeros(0, 3), 0, False, 0
    )


@through_mmcv
def test_nothing_through_mmcv() -> None:
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    rois = torch.zeros(0, 5)
    for layer in (mmcv_ops.RoIAlign(2), mmcv_ops.RoIPool(2)):
        output = layer(x, rois)
        assert output.shape == (0, 3, 2, 2)
        output.sum().backward()
        assert_close(x.grad, torch.zeros_like(x))
    scores = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = mmcv_ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == 0
    layer = mmcv_ops.MaskedConv2d(3, 4, 3, padding=1)
    assert not layer(x[:1].detach(), torch.zeros(1, 4, 4)).any()


def test_no_images_and_no_queries() -> None:
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3}
    x, offset = torch.zeros(0, 2, 4, 4), torch.zeros(0, 18, 4, 4)
    weight, output = torch.ones(3, 2, 3, 3), torch.zeros(0, 3, 4, 4)
    kernels.deform_conv_forward(
        x, weight, offset, output, EMPTY, EMPTY, **options
    )
    grad = torch.zeros_like(weight)
    kernels.deform_conv_backward_parameters(
        x, offset, output, grad, EMPTY, EMPTY, scale=1, **options
    )
    assert not grad.any()
    value, locations, weights = attention_tensors()
    for batch, queries in ((1, 0), (0, 3)):
        output = kernels.ms_deform_attn_forward(
            value[:batch],
            SHAPES,
            STARTS,
            locations[:batch, :queries],
            weights[:batch, :queries],
            64,
        )
        assert output.shape == (batch, queries, 6)


# -------------------------------------------------------------- wrong input

BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)
IMAGE, ROI, POOLED = (
    torch.zeros(1, 2, 4, 4),
    torch.tensor([[0.0, 0, 0, 2, 2]]),
    torch.zeros(1, 2, 2, 2),
)
ALIGN = (EMPTY, EMPTY, 2, 2, 1.0, 2, 1, True)
TARGET = torch.tensor([0, 5])


def focal(scores: Tensor, target: Tensor, weight: Tensor) -> None:
    output = torch.zeros_like(scores)
    kernels.sigmoid_focal_loss_forward(scores, target, weight, output, 2, 0.25)


def deform(changed: dict, offset_channels: int = 18) -> None:
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3} | changed
    offset = torch.zeros(1, offset_channels, 4, 4)
    weight, output = torch.zeros(2, 2, 3, 3), torch.zeros(1, 2, 4, 4)
    kernels.deform_conv_forward(
        IMAGE, weight, offset, output, EMPTY, EMPTY, **options
    )


WRONG = {
    'nms: boxes': lambda: kernels.nms(torch.zeros(3, 5), SCORES, 0.5, 0),
    'nms: 3 boxes need': lambda: kernels.nms(BOXES, SCORES[:2], 0.5, 0),
    'nms: .*floating': lambda: kernels.nms(BOXES.long(), SCORES, 0.5, 0),
    'softnms: dets': lambda: kernels.softnms(
        BOXES, SCORES, BOXES, 0.3, 0.5, 0.1, 1, 0
    ),
    'softnms: method': lambda: kernels.softnms(
        BOXES, SCORES, torch.zeros(3, 5), 0.3, 0.5, 0.1, 3, 0
    ),
    'nms_match: boxes': lambda: kernels.nms_match(BOXES, 0.5),
    'bbox_overlaps: 3 and 2': lambda: kernels.bbox_overlaps(
        BOXES, BOXES[:2], torch.zeros(3), 0, True, 0
    ),
    'roi_align: needs features': lambda: kernels.roi_align_forward(
        IMAGE, BOXES, POOLED, *ALIGN
    ),
    'roi_align: pooled': lambda: kernels.roi_align_forward(
        IMAGE, ROI, IMAGE, *ALIGN
    ),
    'roi_align: RoIs of images 3': lambda: kernels.roi_align_forward(
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
    'deform_conv: offset': lambda: deform({}, offset_channels=9),
    'deform_conv: weight': lambda: deform({'kW': 2}),
    'deform_conv: 2 channels': lambda: deform({'group': 3}),
    'sigmoid_focal_loss: needs': lambda: focal(
        torch.zeros(3, 2), TARGET, EMPTY
    ),
    'sigmoid_focal_loss: target must be int64': lambda: focal(
        torch.zeros(2, 2), TARGET.int(), EMPTY
    ),
    'sigmoid_focal_loss: 3 class weights': lambda: focal(
        torch.zeros(2, 2), TARGET, torch.ones(3)
    ),
    'sigmoid_focal_loss: .*every target': lambda: focal(
        torch.zeros(2, 2), TARGET, torch.ones(2)
    ),
    'softmax_focal_loss: target 5': lambda: kernels.softmax_focal_loss_forward(
        torch.zeros(2, 2), TARGET, EMPTY, torch.zeros(2), 2.0, 0.25
    ),
    'masked_im2col: places': lambda: kernels.masked_im2col_forward(
        IMAGE, TARGET, TARGET, torch.zeros(18, 2), 3, 3, 1, 1
    ),
    'masked_col2im: columns': lambda: kernels.masked_col2im_forward(
        torch.zeros(3, 2), TARGET, TARGET, IMAGE, 4, 4, 2
    ),
    'ms_deform_attn: needs': lambda: kernels.ms_deform_attn_forward(
        IMAGE, SHAPES, STARTS, IMAGE, IMAGE, 64
    ),
    'ms_deform_attn: levels': lambda: kernels.ms_deform_attn_forward(
        torch.zeros(1, 15, 2, 3),
        SHAPES,
        STARTS,
        torch.zeros(1, 3, 2, 2, 2, 2),
        torch.zeros(1, 3, 2, 2, 2),
        64,
    ),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()


# ------------------------------------------------------- the import of it


def test_arguments_are_those_of_mmcv() -> None:
    source = Path(mmcv_ops.__file__).parent / 'csrc/pytorch/pybind.cpp'
    if not source.is_file():
        pytest.skip('mmcv was installed without its sources')
    defined = dict(
        re.findall(r'm\.def\(\s*"(\w+)"(.*?)\);', source.read_text(), re.S)
    )
    for name in kernels.__all__:
        expected = re.findall(r'py::arg\("(\w+)"\)', defined[name])
        ours = list(inspect.signature(getattr(kernels, name)).parameters)
        assert ours == expected, name


@through_mmcv
def test_finder_gives_a_spec() -> None:
    spec = importlib.util.find_spec('mmcv._ext')
    assert isinstance(spec.loader, standin.StandinLoader)
    assert spec.origin == 'mmefficientmod.ops.kernels'
    assert standin.StandinFinder().find_spec('mmcv._other', None) is None
    # What mmengine asks, and what prints its report of the environment.
    dl_utils = importlib.import_module('mmengine.utils.dl_utils')
    assert dl_utils.mmcv_full_available()
    assert 'mmefficientmod' in mmcv_ops.get_compiler_version()
    assert str(torch.version.cuda) in mmcv_ops.get_compiling_cuda_version()
    if sys.version_info < (3, 12):
        assert pkgutil.find_loader('mmcv._ext') is not None


def test_install_again_changes_nothing() -> None:
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
    assert sum(isinstance(f, standin.StandinFinder) for f in before) == 1


def test_op_that_is_not_served() -> None:
    module = types.ModuleType('mmcv._ext')
    standin.StandinLoader().exec_module(module)
    assert module.nms is kernels.nms
    assert hasattr(module, 'box_iou_rotated')
    with pytest.raises(OpNotServedError, match="'box_iou_rotated'") as error:
        module.box_iou_rotated(torch.zeros(1, 5), angle=1)
    assert 'MMCV_WITH_OPS=1 uv pip install' in str(error.value)
    assert isinstance(error.value, NotImplementedError)
    with pytest.raises(AttributeError, match='__path__'):
        module.__path__  # noqa: B018


def test_without_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert not is_standin()
    with pytest.raises(ModuleNotFoundError, match='mmcv'):
        importlib.import_module('mmcv._ext')


@pytest.mark.parametrize('compiled', [True, False])
def test_compiled_ops_come_first(tmp_path: Path, compiled: bool) -> None:
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    if compiled:
        (package / '_ext.py').write_text('compiled = True\n')
    # The file by itself, as this mmcv has nothing that others may need.
    script = f"""
import importlib.util, sys
sys.path.insert(0, {str(tmp_path)!r})
spec = importlib.util.spec_from_file_location('it', {standin.__file__!r})
it = importlib.util.module_from_spec(spec)
spec.loader.exec_module(it)
assert not it.is_standin() or {compiled}
it.install()
assert 'torch' not in sys.modules
print(it.is_standin())
if {compiled}:
    import mmcv._ext
    assert mmcv._ext.compiled and not hasattr(mmcv._ext, 'nms')
"""
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(not compiled)
