"""Compares our stand-in for mmcv's ops with the compiled ones.

Runs every op that we serve, forward and backward, with both on the same
random input, and prints the largest differences. Exit code 1 says that one
was above the tolerance, 2 that there is no compiled mmcv here.

    python tools/dev/compare_ops.py --out compare_ops.json
"""

import argparse
import importlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from mmefficientmod.ops import is_standin, kernels

# What runs one op on some input, with the module that has the op.
Case = Callable[[ModuleType], dict[str, Tensor]]


class Maker:
    """Makes random tensors of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.options = {'dtype': dtype, 'device': device}
        self.device = device
        self.random = torch.Generator().manual_seed(0)

    def uniform(self, *size: int, low: float = 0, high: float = 1) -> Tensor:
        """Evenly distributed numbers."""
        values = torch.rand(size, generator=self.random, dtype=torch.float64)
        return (values * (high - low) + low).to(**self.options)

    def integers(self, *size: int, high: int) -> Tensor:
        """int64 from 0 to below ``high``."""
        values = torch.randint(high, size, generator=self.random)
        return values.to(self.device)

    def scores(self, count: int) -> Tensor:
        """From 0 to below 1, no two of them equal."""
        values = torch.randperm(count, generator=self.random)
        return (values / max(count, 1)).to(**self.options)

    def boxes(self, count: int, size: float = 100) -> Tensor:
        """``(count, 4)``, many of which overlap."""
        corner = self.uniform(count, 2, high=size * 0.7)
        sides = self.uniform(count, 2, low=1, high=size * 0.3)
        return torch.cat([corner, corner + sides], 1)

    def rois(self, count: int, images: int, size: float) -> Tensor:
        """``(count, 5)``, some of which reach out of the image."""
        image = self.integers(count, 1, high=images).to(**self.options)
        return torch.cat([image, self.boxes(count, size * 1.3) - 10], 1)


# Each run_... runs an op, forward and backward, and returns what came out.


def run_nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    offset: int,
    ext: ModuleType,
) -> dict[str, Tensor]:
    inds = ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)
    return {'indices': inds}


def run_softnms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    offset: int,
    method: int,
    ext: ModuleType,
) -> dict[str, Tensor]:
    dets = boxes.new_zeros(len(boxes), 5)
    inds = ext.softnms(
        boxes,
        scores,
        dets,
        iou_threshold=threshold,
        sigma=0.5,
        min_score=0.05,
        method=method,
        offset=offset,
    )
    return {'indices': inds, 'boxes': dets[: len(inds)]}


def run_nms_match(
    dets: Tensor, threshold: float, ext: ModuleType
) -> dict[str, Tensor]:
    groups = ext.nms_match(dets, iou_threshold=threshold)
    # -1 ends a group.
    return {'groups': torch.tensor([n for g in groups for n in (*g, -1)])}


def run_bbox_overlaps(
    first: Tensor,
    second: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
    ext: ModuleType,
) -> dict[str, Tensor]:
    size = (len(first),) if aligned else (len(first), len(second))
    ious = first.new_zeros(size)
    options = {'mode': mode, 'aligned': aligned, 'offset': offset}
    ext.bbox_overlaps(first, second, ious, **options)
    return {'overlaps': ious}


def box_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """nms, softnms, nms_match and bbox_overlaps."""
    for count, offset in itertools.product((0, 1, 37, 300), (0, 1)):
        boxes, scores = make.boxes(count), make.scores(count)
        # Boxes of whole numbers can be just at the threshold.
        for sides, threshold in ((boxes, 0.5), (boxes.round(), 0.6)):
            # Of boxes with equal scores, a compiled nms on CPU takes any
            # first; the order of softnms is defined.
            yield 'nms', partial(run_nms, sides, scores, threshold, offset)
            for method in (0, 1, 2):
                steps = (scores * 8).round() / 8
                yield (
                    'softnms',
                    partial(
                        run_softnms, sides, steps, threshold, offset, method
                    ),
                )
            if count:  # mmcv does not call it for nothing
                dets = torch.cat([sides, scores[:, None]], 1)
                yield 'nms_match', partial(run_nms_match, dets, threshold)
        second = make.boxes(count)
        for mode, aligned in itertools.product((0, 1), (False, True)):
            yield (
                'bbox_overlaps',
                partial(
                    run_bbox_overlaps, boxes, second, mode, aligned, offset
                ),
            )


def run_roi_align(
    x: Tensor,
    rois: Tensor,
    grad_output: Tensor,
    ratio: int,
    aligned: bool,
    ext: ModuleType,
) -> dict[str, Tensor]:
    options = {
        'aligned_height': grad_output.shape[2],
        'aligned_width': grad_output.shape[3],
        'spatial_scale': 0.25,
        'sampling_ratio': ratio,
        'pool_mode': 1,
        'aligned': aligned,
    }
    output, grad = torch.zeros_like(grad_output), torch.zeros_like(x)
    none = x.new_zeros(0)
    ext.roi_align_forward(x, rois, output, none, none, **options)
    ext.roi_align_backward(grad_output, rois, none, none, grad, **options)
    return {'output': output, 'grad input': grad}


def run_roi_pool(
    x: Tensor, rois: Tensor, grad_output: Tensor, ext: ModuleType
) -> dict[str, Tensor]:
    options = {
        'pooled_height': grad_output.shape[2],
        'pooled_width': grad_output.shape[3],
        'spatial_scale': 0.25,
    }
    output, grad = torch.zeros_like(grad_output), torch.zeros_like(x)
    argmax = torch.zeros_like(output, dtype=torch.int32)
    ext.roi_pool_forward(x, rois, output, argmax, **options)
    ext.roi_pool_backward(grad_output, rois, argmax, grad, **options)
    return {'output': output, 'argmax': argmax, 'grad input': grad}


def roi_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """roi_align and roi_pool."""
    for (channels, size, count), cells in itertools.product(
        ((3, (17, 23), 0), (3, (17, 23), 9), (32, (50, 38), 80)),
        ((7, 7), (2, 3)),
    ):
        x = make.uniform(2, channels, *size, low=-1)
        rois = make.rois(count, 2, max(size) * 4)
        inputs = (x, rois, make.uniform(count, channels, *cells, low=-1))
        for ratio, aligned in itertools.product((0, 2), (False, True)):
            yield 'roi_align', partial(run_roi_align, *inputs, ratio, aligned)
        yield 'roi_pool', partial(run_roi_pool, *inputs)


def zeros_for(**tensors: Tensor) -> dict[str, Tensor]:
    """Where the gradients of ``tensors`` go."""
    return {f'grad {k}': torch.zeros_like(t) for k, t in tensors.items()}


def run_deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    options: dict[str, int],
    ext: ModuleType,
) -> dict[str, Tensor]:
    output, none = torch.zeros_like(grad_output), x.new_zeros(0)
    grads = zeros_for(input=x, offset=offset, weight=weight)
    to_x, to_offset, to_weight = grads.values()
    ext.deform_conv_forward(x, weight, offset, output, none, none, **options)
    ext.deform_conv_backward_input(
        x, offset, grad_output, to_x, to_offset, weight, none, **options
    )
    ext.deform_conv_backward_parameters(
        x, offset, grad_output, to_weight, none, none, scale=1, **options
    )
    return {'output': output, **grads}


def run_modulated_deform_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    offset: Tensor,
    mask: Tensor,
    grad_output: Tensor,
    options: dict[str, int],
    ext: ModuleType,
) -> dict[str, Tensor]:
    output, none = torch.zeros_like(grad_output), x.new_zeros(0)
    grads = zeros_for(
        input=x, weight=weight, bias=bias, offset=offset, mask=mask
    )
    ext.modulated_deform_conv_forward(
        x, weight, bias, none, offset, mask, output, none, **options
    )
    ext.modulated_deform_conv_backward(
        x,
        weight,
        bias,
        none,
        offset,
        mask,
        none,
        *grads.values(),
        grad_output,
        **options,
    )
    return {'output': output, **grads}


CONVS = (
    # batch, channels, image, kernel, stride, padding, dilation, groups,
    # deformable groups, size of the offsets
    (2, 4, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 0),
    (2, 4, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 2),
    (2, 8, (9, 7), (3, 2), (2, 1), (0, 1), (1, 2), 2, 4, 5),
    (4, 64, (30, 21), (3, 3), (1, 1), (1, 1), (1, 1), 1, 4, 1),
    (3, 16, (14, 14), (5, 3), (2, 2), (2, 1), (1, 1), 16, 1, 20),
)


def conv_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """deform_conv and modulated_deform_conv."""
    for conv in CONVS:
        batch, channels, image, kernel, stride, pad, dilation = conv[:7]
        groups, deform, reach = conv[7:]
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                image, kernel, stride, pad, dilation, strict=True
            )
        ]
        taps = deform * kernel[0] * kernel[1]
        x = make.uniform(batch, channels, *image, low=-1)
        weight = make.uniform(channels, channels // groups, *kernel, low=-1)
        offset = make.uniform(batch, 2 * taps, *size, low=-reach, high=reach)
        grad_output = make.uniform(batch, channels, *size, low=-1)
        options = {'group': groups, 'deformable_group': deform}
        values = (*kernel, *stride, *pad, *dilation)
        names = map(
            ''.join, itertools.product(('k', 'd', 'pad', 'dilation'), 'HW')
        )
        short = options | dict(zip(names, values, strict=True))
        for step in sorted({1, batch}):
            yield (
                'deform_conv',
                partial(
                    run_deform_conv,
                    x,
                    weight,
                    offset,
                    grad_output,
                    short | {'im2col_step': step},
                ),
            )
        names = itertools.product(
            ('kernel', 'stride', 'pad', 'dilation'), 'hw'
        )
        long = options | dict(zip(map('_'.join, names), values, strict=True))
        bias = make.uniform(channels, low=-1)
        mask = make.uniform(batch, taps, *size)
        for with_bias in (False, True):
            yield (
                'modulated_deform_conv',
                partial(
                    run_modulated_deform_conv,
                    x,
                    weight,
                    bias,
                    offset,
                    mask,
                    grad_output,
                    long | {'with_bias': with_bias},
                ),
            )
    # DyHead gives a level the offsets of the finer one below it.
    finer = (12, 14)
    yield (
        'modulated_deform_conv, larger offsets',
        partial(
            run_modulated_deform_conv,
            make.uniform(2, 4, 6, 7, low=-1),
            make.uniform(4, 4, 3, 3, low=-1),
            make.uniform(4, low=-1),
            make.uniform(2, 18, *finer, low=-2, high=2),
            make.uniform(2, 9, *finer),
            make.uniform(2, 4, 6, 7, low=-1),
            dict.fromkeys(
                ('kernel_h', 'kernel_w'), 3
            ) | dict.fromkeys(
                ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h',
                 'dilation_w', 'group', 'deformable_group'), 1
            ) | {'with_bias': True},
        ),
    )  # fmt: skip


def run_sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
    ext: ModuleType,
) -> dict[str, Tensor]:
    inputs, options = (logits, target, weight), {'gamma': gamma, 'alpha': 0.25}
    output, grad = torch.zeros_like(logits), torch.zeros_like(logits)
    ext.sigmoid_focal_loss_forward(*inputs, output, **options)
    ext.sigmoid_focal_loss_backward(*inputs, grad, **options)
    return {'output': output, 'grad input': grad}


def run_softmax_focal_loss(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
    ext: ModuleType,
) -> dict[str, Tensor]:
    inputs, options = (
        (softmax, target, weight),
        {'gamma': gamma, 'alpha': 0.25},
    )
    output, grad = softmax.new_zeros(len(softmax)), torch.zeros_like(softmax)
    buff = torch.zeros_like(output)
    ext.softmax_focal_loss_forward(*inputs, output, **options)
    ext.softmax_focal_loss_backward(*inputs, buff, grad, **options)
    return {'output': output, 'grad input': grad}


def loss_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """sigmoid_focal_loss and softmax_focal_loss."""
    for count, classes, gamma in ((0, 3, 2.0), (50, 3, 2.0), (900, 80, 1.5)):
        logits = make.uniform(count, classes, low=-9, high=9)
        target = make.integers(count, high=classes)
        for weight in (logits.new_zeros(0), make.uniform(classes)):
            inputs = (target, weight, gamma)
            yield (
                'sigmoid_focal_loss',
                partial(run_sigmoid_focal_loss, logits, *inputs),
            )
            yield (
                'softmax_focal_loss',
                partial(run_softmax_focal_loss, logits.softmax(1), *inputs),
            )


def run_masked_conv(
    x: Tensor,
    places: Tensor,
    kernel: tuple[int, int],
    pad: tuple[int, int],
    ext: ModuleType,
) -> dict[str, Tensor]:
    (height, width), depth = x.shape[2:], x.shape[1] * kernel[0] * kernel[1]
    rows, columns = places.unbind(1)
    rows, columns = rows.contiguous(), columns.contiguous()
    col = x.new_zeros(depth, len(places))
    image = x.new_zeros(1, depth, height, width)
    ext.masked_im2col_forward(
        x,
        rows,
        columns,
        col,
        kernel_h=kernel[0],
        kernel_w=kernel[1],
        pad_h=pad[0],
        pad_w=pad[1],
    )
    size = {'height': height, 'width': width, 'channels': depth}
    ext.masked_col2im_forward(col, rows, columns, image, **size)
    return {'columns': col, 'image': image}


def masked_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """masked_im2col and masked_col2im."""
    for channels, size, kernel, pad in (
        (3, (9, 7), (3, 3), (1, 1)),
        (16, (30, 21), (5, 3), (2, 1)),
    ):
        x = make.uniform(1, channels, *size)
        places = (make.uniform(*size) > 0.7).nonzero()
        yield 'masked_conv', partial(run_masked_conv, x, places, kernel, pad)


def run_ms_deform_attn(
    value: Tensor,
    shapes: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    ext: ModuleType,
) -> dict[str, Tensor]:
    sizes = shapes.prod(1)
    inputs = (value, shapes, sizes.cumsum(0) - sizes, locations, weights)
    grads = zeros_for(value=value, locations=locations, weights=weights)
    output = ext.ms_deform_attn_forward(*inputs, im2col_step=64)
    ext.ms_deform_attn_backward(
        *inputs, grad_output, *grads.values(), im2col_step=64
    )
    return {'output': output, **grads}


def attention_cases(make: Maker) -> Iterator[tuple[str, Case]]:
    """ms_deform_attn."""
    shapes = torch.tensor([[12, 9], [6, 5], [3, 2]], device=make.device)
    keys = int(shapes.prod(1).sum())
    for batch, queries, heads, depth, points in (
        (1, 5, 2, 4, 2),
        (2, 60, 8, 32, 4),
    ):
        size = (batch, queries, heads, len(shapes), points)
        yield (
            'ms_deform_attn',
            partial(
                run_ms_deform_attn,
                make.uniform(batch, keys, heads, depth, low=-1),
                shapes,
                make.uniform(*size, 2, low=-0.2, high=1.2),
                make.uniform(*size),
                make.uniform(batch, queries, heads * depth, low=-1),
            ),
        )


CASES = (
    box_cases,
    roi_cases,
    conv_cases,
    loss_cases,
    masked_cases,
    attention_cases,
)


def difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Largest absolute difference, and its ratio to the largest number.

    Integers that differ at all, and shapes that do, count as infinite.
    """
    if ours.shape != theirs.shape:
        return math.inf, math.inf
    if ours.numel() == 0:
        return 0.0, 0.0
    if not theirs.is_floating_point():
        worst = float((ours.cpu() - theirs.cpu()).abs().max())
        return worst, math.inf if worst else 0.0
    worst = float((ours.double() - theirs.double()).abs().max())
    largest = float(theirs.double().abs().max())
    return worst, worst / largest if largest else worst


def compare(compiled: ModuleType, rtol: float) -> list[dict]:
    """Runs everything with both; one row for each tensor of each op.

    Args:
        compiled (ModuleType): mmcv's own ``mmcv._ext``.
        rtol (float): Tolerance in float32; float64 has as many units in the
            last place.

    Returns:
        list[dict]: The rows of the table.
    """
    devices = ['cpu'] + ['cuda'] * torch.cuda.is_available()
    rows: dict[tuple, dict] = {}
    for device, dtype in itertools.product(
        devices, (torch.float32, torch.float64)
    ):
        make = Maker(dtype, device)
        tolerance = rtol * torch.finfo(dtype).eps / torch.finfo().eps
        for op, case in itertools.chain.from_iterable(c(make) for c in CASES):
            try:
                expected, missing = case(compiled), ''
            except RuntimeError as error:  # mmcv has it for some only
                expected, missing = {}, str(error).splitlines()[0]
            ours = case(kernels)
            for name in expected or ['-']:
                row = rows.setdefault(
                    (op, name, str(dtype).removeprefix('torch.'), device),
                    {'cases': 0, 'absolute': 0.0, 'relative': 0.0, 'ok': True},
                )
                if missing:
                    row['not compiled'] = missing
                    continue
                absolute, relative = difference(ours[name], expected[name])
                row['cases'] += 1
                row['absolute'] = max(row['absolute'], absolute)
                row['relative'] = max(row['relative'], relative)
                row['ok'] &= relative <= tolerance
    keys = ('op', 'result', 'dtype', 'device')
    return [
        dict(zip(keys, key, strict=True)) | row for key, row in rows.items()
    ]


def main() -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--rtol',
        type=float,
        default=1e-5,
        help='largest difference allowed in float32, as a part of the '
        'largest number of the tensor; scaled for float64 (default: 1e-5)',
    )
    parser.add_argument('--out', type=Path, help='write the table as JSON')
    args = parser.parse_args()
    if is_standin():
        print('mmcv has no compiled ops here to compare with.')
        return 2
    try:
        compiled = importlib.import_module('mmcv._ext')
    except ImportError as error:
        print(f'mmcv has no compiled ops here to compare with: {error}')
        return 2
    rows = compare(compiled, args.rtol)
    line = '{:<22} {:<14} {:<8} {:<6} {:>5}  {}'
    print(line.format('op', 'result', 'dtype', 'device', 'cases', 'largest'))
    for row in rows:
        if row['cases']:
            text = f'{row["absolute"]:.1e} relative {row["relative"]:.1e}'
            text += '' if row['ok'] else '  ABOVE THE TOLERANCE'
        else:
            text = f'not compiled: {row["not compiled"]:.40}'
        print(
            line.format(
                row['op'],
                row['result'],
                row['dtype'],
                row['device'],
                row['cases'],
                text,
            )
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + '\n')
    compared = [row for row in rows if row['cases']]
    wrong = sum(not row['ok'] for row in compared)
    print(f'{wrong} of {len(compared)} results differ by more than allowed.')
    return int(wrong > 0 or not compared)


if __name__ == '__main__':
    sys.exit(main())
