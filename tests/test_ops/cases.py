"""Every op that the stand-in serves, on random input of several sizes.

A case runs an op, forward and backward, with the functions of a module that
has mmcv's ops: the stand-in or a compiled mmcv.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

# Takes the module, and returns what it computed by name.
Case = Callable[[Any], dict[str, Tensor]]


class Maker:
    """Makes random tensors, the same for each instance.

    Args:
        cast: Converts floating point tensors from float64 on the CPU.
        device: Where integer tensors are put. Default: the CPU.
        large: Whether there are cases of large inputs. Default: False.
    """

    def __init__(
        self,
        cast: Callable[[Tensor], Tensor],
        device: str = 'cpu',
        large: bool = False,
    ) -> None:
        self.cast = cast
        self.device = device
        self.large = large
        self.generator = torch.Generator().manual_seed(0)

    def sizes(self, *sizes: Any) -> tuple[Any, ...]:
        """All sizes, or all but the last, which is the large one."""
        return sizes if self.large else sizes[:-1]

    def uniform(self, *size: int, low: float = 0, high: float = 1) -> Tensor:
        """Uniformly distributed numbers."""
        return self.cast(self._uniform(size, low, high))

    def integers(self, *size: int, high: int) -> Tensor:
        """int64 from 0 to ``high - 1``."""
        values = torch.randint(high, size, generator=self.generator)
        return values.to(self.device)

    def scores(self, count: int) -> Tensor:
        """From 0 to below 1; no two are equal in float32."""
        values = torch.randperm(count, generator=self.generator)
        return self.cast(values.double() / max(count, 1))

    def probabilities(self, count: int, classes: int) -> Tensor:
        """``(count, classes)``, with a sum of 1 over the classes."""
        return self.cast(self._uniform((count, classes), -9, 9).softmax(1))

    def boxes(self, count: int, side: float = 100) -> Tensor:
        """``(count, 4)`` in an image of a side; many of them overlap."""
        return self.cast(self._boxes(count, side))

    def rois(self, count: int, images: int, side: float) -> Tensor:
        """``(count, 5)``; some reach out of the image."""
        size = (count, 1)
        image = torch.randint(images, size, generator=self.generator)
        boxes = self._boxes(count, side * 1.3) - 10
        return self.cast(torch.cat([image.double(), boxes], 1))

    def _uniform(
        self, size: tuple[int, ...], low: float, high: float
    ) -> Tensor:
        values = torch.rand(
            size, generator=self.generator, dtype=torch.float64
        )
        return values * (high - low) + low

    def _boxes(self, count: int, side: float) -> Tensor:
        corner = self._uniform((count, 2), 0, side * 0.7)
        sides = self._uniform((count, 2), 1, side * 0.3)
        return torch.cat([corner, corner + sides], 1)


# -------------------------------------------------------------------- boxes


def thresholds(
    make: Maker, *counts: int
) -> Iterator[tuple[Tensor, Tensor, float, int]]:
    """Boxes, scores, IoU threshold and offset.

    The IoU of boxes with whole coordinates can be exactly at the threshold.
    """
    for count, offset in product(make.sizes(*counts), (0, 1)):
        boxes, scores = make.boxes(count), make.scores(count)
        yield boxes, scores, 0.5, offset
        yield boxes.round(), scores, 0.6, offset


def nms_cases(make: Maker) -> Iterator[Case]:
    def run(boxes, scores, threshold, offset, ops):
        inds = ops.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        return {'indices': inds}

    # Without equal scores: a compiled nms on a CPU may take any of them first.
    for inputs in thresholds(make, 0, 1, 37, 300):
        yield partial(run, *inputs)


def softnms_cases(make: Maker) -> Iterator[Case]:
    def run(boxes, scores, threshold, offset, method, ops):
        dets = boxes.new_zeros(len(boxes), 5)
        inds = ops.softnms(
            boxes, scores, dets, iou_threshold=threshold, sigma=0.5,
            min_score=0.05, method=method, offset=offset,
        )  # fmt: skip
        return {'indices': inds, 'boxes': dets[: len(inds)]}

    # With equal scores, whose order mmcv defines here.
    for boxes, scores, *settings in thresholds(make, 0, 1, 37, 300):
        for method in (0, 1, 2):
            steps = (scores * 8).round() / 8
            yield partial(run, boxes, steps, *settings, method)


def nms_match_cases(make: Maker) -> Iterator[Case]:
    def run(dets, threshold, ops):
        groups = ops.nms_match(dets, iou_threshold=threshold)
        # -1 ends a group.
        return {
            'groups': torch.tensor(
                [n for group in groups for n in (*group, -1)]
            )
        }

    # mmcv does not call the op without boxes.
    for boxes, scores, threshold, _ in thresholds(make, 1, 37, 300):
        dets = torch.cat([boxes, scores[:, None]], 1)
        yield partial(run, dets, threshold)


def bbox_overlaps_cases(make: Maker) -> Iterator[Case]:
    def run(first, second, mode, aligned, offset, ops):
        size = (len(first),) if aligned else (len(first), len(second))
        ious = first.new_zeros(size)
        options = {'mode': mode, 'aligned': aligned, 'offset': offset}
        ops.bbox_overlaps(first, second, ious, **options)
        return {'overlaps': ious}

    for count, mode, aligned, offset in product(
        make.sizes(0, 1, 37, 300), (0, 1), (False, True), (0, 1)
    ):
        boxes = make.boxes(count), make.boxes(count)
        yield partial(run, *boxes, mode, aligned, offset)


# --------------------------------------------------------------------- RoIs


def roi_inputs(make: Maker) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, RoIs, and the gradient of the output."""
    for (channels, size, count), cells in product(
        make.sizes((3, (17, 23), 0), (3, (17, 23), 9), (32, (50, 38), 80)),
        ((7, 7), (2, 3)),
    ):
        x = make.uniform(2, channels, *size, low=-1)
        rois = make.rois(count, 2, max(size) * 4)
        yield x, rois, make.uniform(count, channels, *cells, low=-1)


def roi_align_cases(make: Maker) -> Iterator[Case]:
    def run(x, rois, grad_output, ratio, aligned, ops):
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
        ops.roi_align_forward(x, rois, output, none, none, **options)
        ops.roi_align_backward(grad_output, rois, none, none, grad, **options)
        return {'output': output, 'grad input': grad}

    for inputs in roi_inputs(make):
        for ratio, aligned in product((0, 2), (False, True)):
            yield partial(run, *inputs, ratio, aligned)


def roi_pool_cases(make: Maker) -> Iterator[Case]:
    def run(x, rois, grad_output, ops):
        options = {
            'pooled_height': grad_output.shape[2],
            'pooled_width': grad_output.shape[3],
            'spatial_scale': 0.25,
        }
        output, grad = torch.zeros_like(grad_output), torch.zeros_like(x)
        argmax = torch.zeros_like(output, dtype=torch.int32)
        ops.roi_pool_forward(x, rois, output, argmax, **options)
        ops.roi_pool_backward(grad_output, rois, argmax, grad, **options)
        return {'output': output, 'argmax': argmax, 'grad input': grad}

    for inputs in roi_inputs(make):
        yield partial(run, *inputs)


# --------------------------------------------------- deformable convolution

CONVS = (
    # batch, channels, image, kernel, stride, padding, dilation, groups,
    # deformable groups, largest offset
    (2, 4, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 0),
    (2, 4, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 2),
    (2, 8, (9, 7), (3, 2), (2, 1), (0, 1), (1, 2), 2, 4, 5),
    (3, 16, (14, 14), (5, 3), (2, 2), (2, 1), (1, 1), 16, 1, 20),
    (4, 64, (30, 21), (3, 3), (1, 1), (1, 1), (1, 1), 1, 4, 1),
)


def conv_tensors(make: Maker, conv: tuple) -> dict[str, Tensor]:
    """The tensors of a convolution by their names."""
    batch, channels, image, kernel, stride, pad, dilation, groups = conv[:8]
    deform_groups, reach = conv[8:]
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            image, kernel, stride, pad, dilation, strict=True
        )
    ]
    taps = deform_groups * kernel[0] * kernel[1]
    return {
        'x': make.uniform(batch, channels, *image, low=-1),
        'weight': make.uniform(channels, channels // groups, *kernel, low=-1),
        'offset': make.uniform(batch, 2 * taps, *size, low=-reach, high=reach),
        'grad_output': make.uniform(batch, channels, *size, low=-1),
        'bias': make.uniform(channels, low=-1),
        'mask': make.uniform(batch, taps, *size),
    }


def zeros_for(**tensors: Tensor) -> dict[str, Tensor]:
    """Memory for the gradients of some tensors."""
    return {f'grad {k}': torch.zeros_like(t) for k, t in tensors.items()}


def deform_conv_cases(make: Maker) -> Iterator[Case]:
    def run(x, weight, offset, grad_output, options, ops):
        output, none = torch.zeros_like(grad_output), x.new_zeros(0)
        grads = zeros_for(input=x, offset=offset, weight=weight)
        to_x, to_offset, to_weight = grads.values()
        ops.deform_conv_forward(
            x, weight, offset, output, none, none, **options
        )
        ops.deform_conv_backward_input(
            x, offset, grad_output, to_x, to_offset, weight, none, **options
        )
        ops.deform_conv_backward_parameters(
            x, offset, grad_output, to_weight, none, none, scale=1, **options
        )
        return {'output': output, **grads}

    names = [f'{name}{side}' for name, side in
             product(('k', 'd', 'pad', 'dilation'), 'HW')]  # fmt: skip
    for conv in make.sizes(*CONVS):
        tensors = conv_tensors(make, conv)
        inputs = [tensors[k] for k in ('x', 'weight', 'offset', 'grad_output')]
        values = [number for pair in conv[3:7] for number in pair]
        options = dict(zip(names, values, strict=True))
        options |= {'group': conv[7], 'deformable_group': conv[8]}
        for step in sorted({1, conv[0]}):
            yield partial(run, *inputs, options | {'im2col_step': step})


def modulated_deform_conv_cases(make: Maker) -> Iterator[Case]:
    def run(x, weight, bias, offset, mask, grad_output, options, ops):
        output, none = torch.zeros_like(grad_output), x.new_zeros(0)
        grads = zeros_for(
            input=x, weight=weight, bias=bias, offset=offset, mask=mask
        )
        ops.modulated_deform_conv_forward(
            x, weight, bias, none, offset, mask, output, none, **options
        )
        ops.modulated_deform_conv_backward(
            x, weight, bias, none, offset, mask, none, *grads.values(),
            grad_output, **options,
        )  # fmt: skip
        return {'output': output, **grads}

    keys = ('x', 'weight', 'bias', 'offset', 'mask', 'grad_output')
    names = [f'{name}_{side}' for name, side in
             product(('kernel', 'stride', 'pad', 'dilation'), 'hw')
             ]  # fmt: skip
    for conv in make.sizes(*CONVS):
        tensors = conv_tensors(make, conv)
        values = [number for pair in conv[3:7] for number in pair]
        options = dict(zip(names, values, strict=True))
        options |= {'group': conv[7], 'deformable_group': conv[8]}
        for with_bias in (False, True):
            yield partial(
                run,
                *(tensors[k] for k in keys),
                options | {'with_bias': with_bias},
            )
    # DyHead gives a level the offsets of the finer level below it, of which
    # the op reads the first values.
    conv = (2, 4, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, 2)
    tensors = conv_tensors(make, conv)
    tensors['offset'] = make.uniform(2, 18, 12, 14, low=-2, high=2)
    tensors['mask'] = make.uniform(2, 9, 12, 14)
    options = dict.fromkeys(names, 1) | {'kernel_h': 3, 'kernel_w': 3}
    options |= {'group': 1, 'deformable_group': 1, 'with_bias': True}
    yield partial(run, *(tensors[k] for k in keys), options)


# --------------------------------------------------------------- focal loss


def loss_inputs(make: Maker) -> Iterator[tuple[Tensor, Tensor, float, int]]:
    """Target, class weights (empty for none), gamma, number of classes."""
    for count, classes, gamma in make.sizes(
        (0, 3, 2.0), (50, 3, 2.0), (900, 80, 1.5)
    ):
        target = make.integers(count, high=classes)
        weights = make.uniform(classes)
        yield target, weights.new_zeros(0), gamma, classes
        yield target, weights, gamma, classes


def sigmoid_focal_loss_cases(make: Maker) -> Iterator[Case]:
    def run(logits, target, weight, gamma, ops):
        inputs = (logits, target, weight)
        options = {'gamma': gamma, 'alpha': 0.25}
        output, grad = torch.zeros_like(logits), torch.zeros_like(logits)
        ops.sigmoid_focal_loss_forward(*inputs, output, **options)
        ops.sigmoid_focal_loss_backward(*inputs, grad, **options)
        return {'output': output, 'grad input': grad}

    for target, *settings, classes in loss_inputs(make):
        logits = make.uniform(len(target), classes, low=-9, high=9)
        yield partial(run, logits, target, *settings)


def softmax_focal_loss_cases(make: Maker) -> Iterator[Case]:
    def run(softmax, target, weight, gamma, ops):
        inputs = (softmax, target, weight)
        options = {'gamma': gamma, 'alpha': 0.25}
        output = softmax.new_zeros(len(softmax))
        buff, grad = torch.zeros_like(output), torch.zeros_like(softmax)
        ops.softmax_focal_loss_forward(*inputs, output, **options)
        ops.softmax_focal_loss_backward(*inputs, buff, grad, **options)
        return {'output': output, 'grad input': grad}

    for target, *settings, classes in loss_inputs(make):
        softmax = make.probabilities(len(target), classes)
        yield partial(run, softmax, target, *settings)


# -------------------------------------- masked convolution, deform. attention


def masked_conv_cases(make: Maker) -> Iterator[Case]:
    def run(x, places, kernel, pad, ops):
        height, width = x.shape[2:]
        depth = x.shape[1] * kernel[0] * kernel[1]
        rows, columns = (t.contiguous() for t in places.unbind(1))
        col = x.new_zeros(depth, len(places))
        image = x.new_zeros(1, depth, height, width)
        ops.masked_im2col_forward(
            x, rows, columns, col, kernel_h=kernel[0], kernel_w=kernel[1],
            pad_h=pad[0], pad_w=pad[1],
        )  # fmt: skip
        size = {'height': height, 'width': width, 'channels': depth}
        ops.masked_col2im_forward(col, rows, columns, image, **size)
        return {'columns': col, 'image': image}

    for channels, size, kernel, pad in make.sizes(
        (3, (9, 7), (3, 3), (1, 1)),
        (16, (30, 21), (5, 3), (2, 1)),
    ):
        x = make.uniform(1, channels, *size)
        places = (make.uniform(*size) > 0.7).nonzero()
        yield partial(run, x, places, kernel, pad)


def ms_deform_attn_cases(make: Maker) -> Iterator[Case]:
    def run(value, shapes, locations, weights, grad_output, ops):
        sizes = shapes.prod(1)
        inputs = (value, shapes, sizes.cumsum(0) - sizes, locations, weights)
        grads = zeros_for(value=value, locations=locations, weights=weights)
        output = ops.ms_deform_attn_forward(*inputs, im2col_step=64)
        ops.ms_deform_attn_backward(
            *inputs, grad_output, *grads.values(), im2col_step=64
        )
        return {'output': output, **grads}

    shapes = torch.tensor([[12, 9], [6, 5], [3, 2]], device=make.device)
    keys = int(shapes.prod(1).sum())
    for batch, queries, heads, depth, points in make.sizes(
        (1, 5, 2, 4, 2),
        (2, 60, 8, 32, 4),
    ):
        size = (batch, queries, heads, len(shapes), points)
        yield partial(
            run,
            make.uniform(batch, keys, heads, depth, low=-1),
            shapes,
            make.uniform(*size, 2, low=-0.2, high=1.2),
            make.uniform(*size),
            make.uniform(batch, queries, heads * depth, low=-1),
        )


CASES: dict[str, Callable[[Maker], Iterator[Case]]] = {
    'nms': nms_cases,
    'softnms': softnms_cases,
    'nms_match': nms_match_cases,
    'bbox_overlaps': bbox_overlaps_cases,
    'roi_align': roi_align_cases,
    'roi_pool': roi_pool_cases,
    'deform_conv': deform_conv_cases,
    'modulated_deform_conv': modulated_deform_conv_cases,
    'sigmoid_focal_loss': sigmoid_focal_loss_cases,
    'softmax_focal_loss': softmax_focal_loss_cases,
    'masked_conv': masked_conv_cases,
    'ms_deform_attn': ms_deform_attn_cases,
}
