"""mmcv's operators, from the kernels of torchvision and PyTorch.

Every public function has the name, the arguments and the results of the
function of that name in a compiled ``mmcv._ext``: most write their result
into a tensor that the caller made. They run where their tensors are, CPU or
CUDA. float16 and bfloat16 are computed in float32 and cast back.

Arguments that only a compiled kernel needs (work space such as ``columns``,
and ``im2col_step``, which splits a batch) are taken and not used.

Unless said otherwise, boxes are ``(x1, y1, x2, y2)`` in pixels, and an RoI is
``(image index, x1, y1, x2, y2)`` in pixels of the input image.
"""

import ctypes
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

__all__ = [
    'bbox_overlaps',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]

# mmcv takes the logarithm of no probability below C's FLT_MIN.
_TINY = torch.finfo(torch.float32).tiny


def get_compiler_version() -> str:
    """Returns what mmengine's environment report prints as mmcv's compiler."""
    return f'none (mmefficientmod over torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Returns what mmengine's environment report prints as mmcv's CUDA."""
    return f'none (CUDA of PyTorch: {torch.version.cuda})'


def _check(ok: bool, op: str, problem: str) -> None:
    if not ok:
        raise ValueError(f'{op}: {problem}')


def _same_float(op: str, *tensors: Tensor) -> list[Tensor]:
    """Casts all to their widest floating point type, float32 or wider."""
    wrong = [t.dtype for t in tensors if not t.is_floating_point()]
    if wrong:
        raise TypeError(f'{op}: needs floating point tensors, got {wrong[0]}')
    dtypes = [torch.float32, *(t.dtype for t in tensors)]
    dtype = reduce(torch.promote_types, dtypes)
    return [t.to(dtype) for t in tensors]


# ------------------------------------------------------------------- boxes


def _check_boxes(op: str, boxes: Tensor, columns: int = 4) -> None:
    _check(
        boxes.dim() == 2 and boxes.shape[1] == columns,
        op,
        f'boxes must be (N, {columns}), got {tuple(boxes.shape)}',
    )


def _check_scores(op: str, boxes: Tensor, scores: Tensor) -> None:
    _check(
        scores.shape == boxes.shape[:1],
        op,
        f'{len(boxes)} boxes need scores ({len(boxes)},), '
        f'got {tuple(scores.shape)}',
    )


def _overlap(
    boxes1: Tensor, boxes2: Tensor, offset: int, over_first: bool = False
) -> Tensor:
    """Intersection over union, or over the area of ``boxes1``.

    Args:
        boxes1 (Tensor): ``(..., 4)``.
        boxes2 (Tensor): ``(..., 4)``, of a shape that broadcasts.
        offset (int): What is added to each width and height.
        over_first (bool): Divide by the area of ``boxes1``. Default: False.

    Returns:
        Tensor: ``(...)``.
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low + offset).prod(-1)

    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    common = (high - low + offset).clamp(min=0).prod(-1)
    base = area(boxes1[..., :2], boxes1[..., 2:])
    if not over_first:
        base = base + area(boxes2[..., :2], boxes2[..., 2:]) - common
    return common / base


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes (Tensor): ``(N, 4)``.
        scores (Tensor): ``(N,)``.
        iou_threshold (float): A box that overlaps a better one by more than
            this is dropped.
        offset (int): What is added to each width and height, 0 or 1.

    Returns:
        Tensor: Indices of the boxes kept, best first, int64.
    """
    _check_boxes('nms', boxes)
    _check_scores('nms', boxes, scores)
    boxes, scores = _same_float('nms', boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares with a C float; torchvision, on CPU, with a double, which
    # differs for boxes that overlap by exactly, say, 0.6.
    threshold = ctypes.c_float(iou_threshold).value
    return torchvision.ops.nms(boxes, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft non-maximum suppression: lowers scores in place of dropping.

    Args:
        boxes (Tensor): ``(N, 4)``.
        scores (Tensor): ``(N,)``.
        dets (Tensor): ``(N, 5)``; its first K rows become the boxes kept
            with their new scores, best first, the others stay as they are.
        iou_threshold (float): Overlap from which methods 0 and 1 act.
        sigma (float): Width of the Gaussian of method 2.
        min_score (float): A box whose score sinks below this is dropped.
        method (int): 0 drops (naive), 1 is linear, 2 Gaussian.
        offset (int): What is added to each width and height, 0 or 1.

    Returns:
        Tensor: Indices of the K boxes kept, int64.
    """
    _check_boxes('softnms', boxes)
    _check_scores('softnms', boxes, scores)
    _check(
        dets.shape == (len(boxes), 5),
        'softnms',
        f'dets must be ({len(boxes)}, 5), got {tuple(dets.shape)}',
    )
    _check(
        method in (0, 1, 2),
        'softnms',
        f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method}',
    )
    boxes, scores = _same_float('softnms', boxes, scores)
    rows = torch.cat([boxes, scores[:, None]], 1)
    inds = torch.arange(len(rows), device=rows.device)
    count = len(rows)
    i = 0
    while i < count:
        best = i + int(rows[i:count, 4].argmax())
        for table in (rows, inds):
            table[i], table[best] = table[best].clone(), table[i].clone()
        rest, rest_inds = rows[i + 1 : count], inds[i + 1 : count]
        iou = _overlap(rows[i, :4], rest[:, :4], offset)
        if method == 2:
            rest[:, 4] *= torch.exp(-(iou * iou) / sigma)
        else:
            lowered = 1 - iou if method == 1 else torch.zeros_like(iou)
            rest[:, 4] *= lowered.where(iou >= iou_threshold, 1.0)
        keep = ~(rest[:, 4] < min_score)
        left = int(keep.sum())
        if left < len(rest):
            # The last boxes take the places of those dropped, as in mmcv:
            # of boxes with equal scores, the order decides which is first.
            holes = (~keep[:left]).nonzero()[:, 0]
            last = left + keep[left:].nonzero()[:, 0].flip(0)
            rest[holes] = rest[last]
            rest_inds[holes] = rest_inds[last]
        i += 1
        count = i + left
    dets[:count] = rows[:count]
    return inds[:count]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression that tells which box dropped which.

    Args:
        dets (Tensor): ``(N, 5)``, boxes and scores.
        iou_threshold (float): A box that overlaps a better one by this or
            more is dropped.

    Returns:
        list[list[int]]: For each box kept, best first, its index and those
        of the boxes it dropped, by score.
    """
    _check_boxes('nms_match', dets, columns=5)
    (dets,) = _same_float('nms_match', dets)
    order = dets[:, 4].argsort(descending=True, stable=True)
    boxes = dets[order, :4]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=dets.device)
    groups = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        drop = alive & (_overlap(boxes[i], boxes, 0) >= iou_threshold)
        drop[: i + 1] = False
        alive &= ~drop
        groups.append([int(order[i]), *order[drop].tolist()])
    return groups


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
) -> None:
    """Overlaps of boxes.

    Args:
        bboxes1 (Tensor): ``(M, 4)``.
        bboxes2 (Tensor): ``(N, 4)``.
        ious (Tensor): Result, ``(M, N)``; ``(M,)`` if ``aligned``.
        mode (int): 0 divides by the union, 1 by the area of ``bboxes1``.
        aligned (bool): Compare box i with box i only (then M is N).
        offset (int): What is added to each width and height, 0 or 1.
    """
    op = 'bbox_overlaps'
    _check_boxes(op, bboxes1)
    _check_boxes(op, bboxes2)
    _check(mode in (0, 1), op, f'mode must be 0 (iou) or 1 (iof), got {mode}')
    size = (len(bboxes1),) if aligned else (len(bboxes1), len(bboxes2))
    _check(
        ious.shape == size and (not aligned or len(bboxes1) == len(bboxes2)),
        op,
        f'{len(bboxes1)} and {len(bboxes2)} boxes, {aligned=}, do not go '
        f'with a result of {tuple(ious.shape)}',
    )
    bboxes1, bboxes2 = _same_float(op, bboxes1, bboxes2)
    if not aligned:
        bboxes1 = bboxes1[:, None]
    ious.copy_(_overlap(bboxes1, bboxes2, offset, over_first=mode == 1))


# -------------------------------------------------------------------- RoIs


def _check_rois(
    op: str, images: Tensor, rois: Tensor, pooled: Tensor, size: tuple
) -> None:
    _check(
        images.dim() == 4 and rois.dim() == 2 and rois.shape[1] == 5,
        op,
        'needs features (N, C, H, W) and RoIs (K, 5), got '
        f'{tuple(images.shape)} and {tuple(rois.shape)}',
    )
    expected = (len(rois), images.shape[1], *size)
    _check(
        pooled.shape == expected,
        op,
        f'pooled features must be {expected}, got {tuple(pooled.shape)}',
    )
    # Reading a GPU tensor would make the CPU wait for it, on every call.
    if rois.is_cpu and len(rois):
        low, high = rois[:, 0].float().aminmax()
        _check(
            low >= 0 and high < len(images),
            op,
            f'RoIs of images {int(low)} to {int(high)} in a batch of '
            f'{len(images)}',
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
            "roi_align: pool_mode='max' is in a compiled mmcv only; use "
            "pool_mode='avg'"
        )
    _check_rois(op, images, rois, pooled, size)
    if aligned and rois.is_cpu:
        _check(
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
        sampling_ratio (int): Samples in a cell, along each axis; 0 or less:
            as many as the RoI has pixels there.
        pool_mode (int): 1, the average of the samples.
        aligned (bool): Shift by the half pixel that the legacy version lacks.
    """
    size = (aligned_height, aligned_width)
    _check_roi_align(input, rois, output, size, pool_mode, aligned)
    input, rois = _same_float('roi_align', input, rois)
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
    """Adds the gradient of :func:`roi_align_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): ``(K, C, aligned_height, aligned_width)``.
        grad_input (Tensor): Result, ``(N, C, H, W)``.

    The other arguments are those of the forward pass.
    """
    size = (aligned_height, aligned_width)
    _check_roi_align(grad_input, rois, grad_output, size, pool_mode, aligned)
    grad_output, rois = _same_float('roi_align', grad_output, rois)
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
        argmax (Tensor): Result, int32 of the same shape: the place of the
            maximum, ``row * W + column``; -1 in a cell without pixels.
        pooled_height (int): Rows of the result.
        pooled_width (int): Columns of the result.
        spatial_scale (float): Pixels of ``input`` per pixel of the image.
    """
    size = (pooled_height, pooled_width)
    _check_rois('roi_pool', input, rois, output, size)
    input, rois = _same_float('roi_pool', input, rois)

    def edges(low: Tensor, high: Tensor, cells: int, size: int) -> Tensor:
        """First and last pixel of each cell along an axis, (K, cells, 2)."""
        step = (high - low)[:, None] / cells
        at = torch.arange(cells, device=low.device)
        first = (at * step + low[:, None]).floor().clamp(0, size)
        end = ((at + 1) * step + low[:, None]).ceil().clamp(0, size)
        return torch.stack([first, end - 1], -1)

    # torchvision rounds an RoI to whole pixels before it is divided, mmcv
    # after. So each cell becomes an RoI in whole pixels of its own.
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
    """Adds the gradient of :func:`roi_pool_forward` to ``grad_input``.

    Args:
        grad_output (Tensor): ``(K, C, pooled_height, pooled_width)``.
        argmax (Tensor): Result of the forward pass.
        grad_input (Tensor): Result, ``(N, C, H, W)``.

    The other arguments are those of the forward pass.
    """
    size = (pooled_height, pooled_width)
    _check_rois('roi_pool', grad_input, rois, grad_output, size)
    _check(
        argmax.shape == grad_output.shape,
        'roi_pool',
        f'argmax {tuple(argmax.shape)} is not of the shape of the gradient '
        f'{tuple(grad_output.shape)}',
    )
    grad_output, rois = _same_float('roi_pool', grad_output, rois)
    grad_input += torch.ops.torchvision._roi_pool_backward(
        grad_output,
        rois,
        argmax,
        spatial_scale,
        *size,
        *grad_input.shape,
    )


# -------------------------------------------------- deformable convolution


class _Conv(NamedTuple):
    """What a deformable convolution is besides its tensors; (y, x) pairs."""

    op: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    def check(
        self,
        input: Tensor,
        weight_shape: torch.Size,
        offset: Tensor,
        mask: Tensor | None,
        output: Tensor,
    ) -> None:
        """Raises ValueError where the shapes do not go together."""
        _check(
            input.dim() == 4,
            self.op,
            f'input must be (N, C, H, W), got {tuple(input.shape)}',
        )
        batch, channels = input.shape[:2]
        _check(
            channels % self.groups == 0 and channels % self.offset_groups == 0,
            self.op,
            f'{channels} channels are not divisible by {self.groups} groups '
            f'and {self.offset_groups} deformable groups',
        )
        outputs = weight_shape[0]
        expected = (outputs, channels // self.groups, *self.kernel)
        _check(
            weight_shape == expected and outputs % self.groups == 0,
            self.op,
            f'weight must be (multiple of {self.groups}, *{expected[1:]}) '
            f'for an input of {channels} channels in {self.groups} groups, '
            f'got {tuple(weight_shape)}',
        )
        size = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                input.shape[2:],
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        shapes = [
            ('offset', offset, 2 * taps),
            ('mask', mask, taps),
            ('output', output, outputs),
        ]
        for name, tensor, width in shapes:
            if tensor is None:
                continue
            _check(
                tensor.shape == (batch, width, *size),
                self.op,
                f'{name} must be {(batch, width, *size)} for an input of '
                f'{tuple(input.shape)}, got {tuple(tensor.shape)}',
            )

    def on_border(self, offset: Tensor) -> Tensor:
        """Where a tap is one pixel or more above or left of the image.

        Returns:
            Tensor: bool, of the shape of ``offset``.
        """
        batch, _, *size = offset.shape
        # (N, groups, kernel y, kernel x, y or x, output y, output x)
        taps = offset.reshape(batch, -1, *self.kernel, 2, *size)
        outside = torch.zeros_like(taps[:, :, :, :, 0], dtype=torch.bool)
        for axis in (0, 1):
            start = torch.arange(size[axis], device=offset.device)
            start = start * self.stride[axis] - self.padding[axis]
            step = torch.arange(self.kernel[axis], device=offset.device)
            grid = start + step[:, None] * self.dilation[axis]
            shape = [1] * outside.dim()
            shape[2 + axis], shape[4 + axis] = grid.shape
            outside |= grid.view(shape) + taps[:, :, :, :, axis] <= -1
        return outside.unsqueeze(4).expand_as(taps).reshape(offset.shape)

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        output: Tensor,
    ) -> None:
        """Writes the convolution of ``input`` into ``output``."""
        self.check(input, weight.shape, offset, mask, output)
        if output.numel() == 0:
            return
        given = [t for t in (mask, bias) if t is not None]
        input, weight, offset, *given = _same_float(
            self.op, input, weight, offset, *given
        )
        output.copy_(
            torchvision.ops.deform_conv2d(
                input,
                offset,
                weight,
                bias=None if bias is None else given[-1],
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=None if mask is None else given[0],
            )
        )

    def backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Returns the gradients of input, weight, offset, mask and bias."""
        self.check(input, weight.shape, offset, mask, grad_output)
        # torchvision wants tensors in place of what is not there.
        bias = weight.new_empty(len(weight))
        no_mask = input.new_empty(len(input), 0)
        names = ('input', 'weight', 'offset', 'mask', 'bias')
        tensors = _same_float(
            self.op,
            input,
            weight,
            offset,
            no_mask if mask is None else mask,
            bias,
            grad_output,
        )
        if grad_output.numel() == 0:
            return dict(
                zip(names, map(torch.zeros_like, tensors[:5]), strict=True)
            )
        grads = torch.ops.torchvision._deform_conv2d_backward(
            tensors[-1],
            *tensors[:-1],
            *self.stride,
            *self.padding,
            *self.dilation,
            self.groups,
            self.offset_groups,
            mask is not None,
        )
        grads = dict(zip(names, grads, strict=True))
        # The output has a kink where a tap is exactly one pixel outside, as
        # those of new layers (all offsets 0) with padding are. There mmcv's
        # gradient is 0, torchvision's the slope on the side of the image.
        grads['offset'].masked_fill_(self.on_border(tensors[2]), 0)
        return grads


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(O, C / group, kH, kW)``.
        offset (Tensor): ``(N, deformable_group * kH * kW * 2, H', W')``, in
            pixels of ``input``, y before x.
        output (Tensor): Result, ``(N, O, H', W')``.
        columns (Tensor): Not used.
        ones (Tensor): Not used.
        kW (int): Width of the kernel.
        kH (int): Height of the kernel.
        dW (int): Stride along x.
        dH (int): Stride along y.
        padW (int): Padding along x.
        padH (int): Padding along y.
        dilationW (int): Dilation along x.
        dilationH (int): Dilation along y.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share offsets.
        im2col_step (int): Not used.
    """
    _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).forward(input, weight, offset, None, None, output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of :func:`deform_conv_forward`.

    Args:
        gradOutput (Tensor): ``(N, O, H', W')``.
        gradInput (Tensor): The gradient is added to it, as ``input``.
        gradOffset (Tensor): Result, as ``offset``.

    The other arguments are those of the forward pass.
    """
    grads = _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).backward(gradOutput, input, weight, offset, None)
    gradInput += grads['input']
    gradOffset.copy_(grads['offset'])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` for its weight.

    Args:
        gradOutput (Tensor): ``(N, O, H', W')``.
        gradWeight (Tensor): ``scale`` times the gradient is added to it,
            ``(O, C / group, kH, kW)``.
        scale (float): Factor of the gradient.

    The other arguments are those of the forward pass.
    """
    # The gradient of the weight does not depend on the weight itself.
    grads = _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).backward(gradOutput, input, gradWeight, offset, None)
    gradWeight.add_(grads['weight'], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(O, C / group, kernel_h, kernel_w)``.
        bias (Tensor): ``(O,)``; read if ``with_bias``.
        ones (Tensor): Not used.
        offset (Tensor): ``(N, deformable_group * kernel_h * kernel_w * 2,
            H', W')``, in pixels of ``input``, y before x.
        mask (Tensor): ``(N, deformable_group * kernel_h * kernel_w, H',
            W')``, factors.
        output (Tensor): Result, ``(N, O, H', W')``.
        columns (Tensor): Not used.
        kernel_h (int): Height of the kernel.
        kernel_w (int): Width of the kernel.
        stride_h (int): Stride along y.
        stride_w (int): Stride along x.
        pad_h (int): Padding along y.
        pad_w (int): Padding along x.
        dilation_h (int): Dilation along y.
        dilation_w (int): Dilation along x.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share offsets.
        with_bias (bool): Add the bias.
    """
    _Conv(
        'modulated_deform_conv',
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    ).forward(input, weight, offset, mask, bias if with_bias else None, output)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`.

    Args:
        grad_input (Tensor): The gradient is added to it, as ``input``.
        grad_weight (Tensor): The gradient is added to it, as ``weight``.
        grad_bias (Tensor): The gradient is added to it if ``with_bias``.
        grad_offset (Tensor): Result, as ``offset``.
        grad_mask (Tensor): Result, as ``mask``.
        grad_output (Tensor): ``(N, O, H', W')``.

    The other arguments are those of the forward pass.
    """
    grads = _Conv(
        'modulated_deform_conv',
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    ).backward(grad_output, input, weight, offset, mask)
    grad_input += grads['input']
    grad_weight += grads['weight']
    grad_offset.copy_(grads['offset'])
    grad_mask.copy_(grads['mask'])
    if with_bias:
        grad_bias += grads['bias']


# -------------------------------------------------------------- focal loss


def _check_focal(
    op: str, scores: Tensor, target: Tensor, weight: Tensor
) -> None:
    _check(
        scores.dim() == 2 and target.shape == scores.shape[:1],
        op,
        'needs scores (N, C) and targets (N,), got '
        f'{tuple(scores.shape)} and {tuple(target.shape)}',
    )
    if target.dtype != torch.int64:
        raise TypeError(f'{op}: target must be int64, got {target.dtype}')
    _check(
        weight.numel() in (0, scores.shape[1]),
        op,
        f'{weight.numel()} class weights for {scores.shape[1]} classes',
    )


def _class_weight(op: str, weight: Tensor, target: Tensor) -> Tensor | float:
    """The weight of each target, (N, 1); 1 if there are no weights."""
    if weight.numel() == 0:
        return 1.0
    if len(target):
        low, high = target.aminmax()
        _check(
            low >= 0 and high < len(weight),
            op,
            f'with class weights every target must be a class, 0 to '
            f'{len(weight) - 1}, got {int(low)} to {int(high)}',
        )
    return weight[target][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of one sigmoid for each class.

    Args:
        input (Tensor): Logits, ``(N, C)``.
        target (Tensor): Class of each row, ``(N,)``, int64. A number that is
            no class, such as C, is background.
        weight (Tensor): Weight of each class, ``(C,)``, or empty.
        output (Tensor): Result, ``(N, C)``.
        gamma (float): Power by which easy examples count less.
        alpha (float): Weight of the positives; negatives have 1 - alpha.
    """
    op = 'sigmoid_focal_loss'
    _check_focal(op, input, target, weight)
    input, weight = _same_float(op, input, weight)
    p = input.sigmoid()
    q = 1 - p
    classes = torch.arange(input.shape[1], device=input.device)
    loss = torch.where(
        target[:, None] == classes,
        -alpha * q**gamma * p.clamp(min=_TINY).log(),
        (alpha - 1) * p**gamma * q.clamp(min=_TINY).log(),
    )
    output.copy_(loss * _class_weight(op, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`sigmoid_focal_loss_forward`.

    Args:
        grad_input (Tensor): Result, ``(N, C)``.

    The other arguments are those of the forward pass.
    """
    op = 'sigmoid_focal_loss'
    _check_focal(op, input, target, weight)
    input, weight = _same_float(op, input, weight)
    p = input.sigmoid()
    q = 1 - p
    log_p = p.clamp(min=_TINY).log()
    log_q = q.clamp(min=_TINY).log()
    classes = torch.arange(input.shape[1], device=input.device)
    grad = torch.where(
        target[:, None] == classes,
        -alpha * q**gamma * (q - gamma * p * log_p),
        (alpha - 1) * p**gamma * (gamma * q * log_q - p),
    )
    grad_input.copy_(grad * _class_weight(op, weight, target))


def _softmax_focal_terms(
    softmax: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax, probability of the target and its weight (0: ignored)."""
    op = 'softmax_focal_loss'
    _check_focal(op, softmax, target, weight)
    softmax, weight = _same_float(op, softmax, weight)
    if target.is_cpu and len(target):
        _check(
            int(target.max()) < softmax.shape[1],
            op,
            f'target {int(target.max())} with {softmax.shape[1]} classes',
        )
    label = target.clamp(min=0)
    p = softmax.gather(1, label[:, None])[:, 0]
    factor = weight[label] if weight.numel() else torch.ones_like(p)
    return softmax, p, factor.masked_fill(target < 0, 0)


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of a softmax.

    Args:
        input (Tensor): Probabilities (not logits), ``(N, C)``.
        target (Tensor): Class of each row, ``(N,)``, int64; below 0: the
            row is ignored.
        weight (Tensor): Weight of each class, ``(C,)``, or empty.
        output (Tensor): Result, ``(N,)``.
        gamma (float): Power by which easy examples count less.
        alpha (float): Factor of the loss.
    """
    _, p, factor = _softmax_focal_terms(input, target, weight)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    output.copy_(loss * factor)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`softmax_focal_loss_forward` by the logits.

    Args:
        buff (Tensor): Result, ``(N,)``: the part common to all classes.
        grad_input (Tensor): Result, ``(N, C)``.

    The other arguments are those of the forward pass.
    """
    softmax, p, factor = _softmax_focal_terms(input, target, weight)
    q = 1 - p
    slope = gamma * q ** (gamma - 1) * p * p.clamp(min=_TINY).log()
    common = alpha * (slope - q**gamma) * factor
    buff.copy_(common)
    classes = torch.arange(softmax.shape[1], device=softmax.device)
    hit = (target[:, None] == classes).to(softmax.dtype)
    grad_input.copy_(common[:, None] * (hit - softmax))


# ------------------------------------------------------ masked convolution


def _check_places(
    op: str, ys: Tensor, xs: Tensor, height: int, width: int
) -> None:
    for places, size in ((ys, height), (xs, width)):
        if len(places):
            low, high = places.aminmax()
            _check(
                low >= 0 and high < size,
                op,
                f'places {int(low)} to {int(high)} of the mask in a map of '
                f'{height} x {width}; is the mask of the size of the output?',
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
    """Collects the neighbourhoods of some places of an image.

    Args:
        im (Tensor): ``(1, C, H, W)``.
        mask_h_idx (Tensor): Rows of the places, ``(P,)``, int64.
        mask_w_idx (Tensor): Columns of the places, ``(P,)``, int64.
        col (Tensor): Result, ``(C * kernel_h * kernel_w, P)``.
        kernel_h (int): Height of a neighbourhood.
        kernel_w (int): Width of a neighbourhood.
        pad_h (int): Rows of it above its place.
        pad_w (int): Columns of it left of its place.
    """
    op = 'masked_im2col'
    _check(
        im.dim() == 4 and len(im) == 1,
        op,
        f'the image must be (1, C, H, W), got {tuple(im.shape)}',
    )
    channels, height, width = im.shape[1:]
    size = (channels * kernel_h * kernel_w, len(mask_h_idx))
    _check(
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
    """Writes columns to some places of an image, and leaves the others.

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
    _check(
        im.shape == (1, channels, height, width)
        and col.shape == (channels, len(mask_h_idx)),
        op,
        f'columns {tuple(col.shape)} at {len(mask_h_idx)} places do not go '
        f'with an image of {tuple(im.shape)}',
    )
    _check_places(op, mask_h_idx, mask_w_idx, height, width)
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)


# ---------------------------------------- multi-scale deformable attention


def _sample_levels(
    value: Tensor,
    shapes: list[list[int]],
    starts: list[int],
    locations: Tensor,
    attention: Tensor,
) -> Tensor:
    """What ms_deform_attn_forward does, of tensors that can have gradients."""
    batch, queries, heads = locations.shape[:3]
    depth = value.shape[3]
    # grid_sample counts from -1 to 1 over the map.
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    attention = attention.transpose(1, 2).flatten(0, 1)
    output = value.new_zeros(batch * heads, depth, queries)
    for level, ((height, width), start) in enumerate(
        zip(shapes, starts, strict=True)
    ):
        image = value[:, start : start + height * width]
        image = image.permute(0, 2, 3, 1)
        image = image.reshape(batch * heads, depth, height, width)
        # (N * heads, depth, queries, points)
        samples = F.grid_sample(image, grid[:, :, level], align_corners=False)
        output = output + (samples * attention[:, None, :, level]).sum(-1)
    output = output.view(batch, heads * depth, queries)
    return output.transpose(1, 2).contiguous()


def _attention_levels(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    attention: Tensor,
) -> tuple[list[list[int]], list[int]]:
    """Checks the arguments; returns the levels' sizes and starts."""
    op = 'ms_deform_attn'
    _check(
        value.dim() == 4
        and locations.dim() == 6
        and locations.shape[-1] == 2
        and locations.shape[0] == value.shape[0]
        and locations.shape[2] == value.shape[2]
        and attention.shape == locations.shape[:-1],
        op,
        'needs value (N, keys, heads, depth), locations (N, queries, heads, '
        'levels, points, 2) and weights without the last dimension, got '
        f'{tuple(value.shape)}, {tuple(locations.shape)} and '
        f'{tuple(attention.shape)}',
    )
    shapes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    _check(
        len(shapes) == len(starts) == locations.shape[3],
        op,
        f'{len(shapes)} sizes, {len(starts)} starts and locations for '
        f'{locations.shape[3]} levels',
    )
    _check(
        all(
            0 <= start <= value.shape[1] - height * width
            for (height, width), start in zip(shapes, starts, strict=True)
        ),
        op,
        f'levels of {shapes} at {starts} do not fit in {value.shape[1]} keys',
    )
    return shapes, starts


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention.

    Args:
        value (Tensor): ``(N, keys, heads, depth)``.
        value_spatial_shapes (Tensor): Height and width of each level,
            ``(levels, 2)``, int64.
        value_level_start_index (Tensor): First key of each level,
            ``(levels,)``, int64.
        sampling_locations (Tensor): ``(N, queries, heads, levels, points,
            2)``, x before y, 0 to 1 over the level.
        attention_weights (Tensor): ``(N, queries, heads, levels, points)``.
        im2col_step (int): Not used.

    Returns:
        Tensor: ``(N, queries, heads * depth)``.
    """
    levels = _attention_levels(
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
    )
    data, locations, attention = _same_float(
        'ms_deform_attn', value, sampling_locations, attention_weights
    )
    return _sample_levels(data, *levels, locations, attention).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`.

    Args:
        grad_output (Tensor): ``(N, queries, heads * depth)``.
        grad_value (Tensor): The gradient is added to it, as ``value``.
        grad_sampling_loc (Tensor): Likewise, as ``sampling_locations``.
        grad_attn_weight (Tensor): Likewise, as ``attention_weights``.

    The other arguments are those of the forward pass.
    """
    levels = _attention_levels(
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_locations,
        attention_weights,
    )
    *inputs, grad_output = _same_float(
        'ms_deform_attn',
        value,
        sampling_locations,
        attention_weights,
        grad_output,
    )
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in inputs]
        data, locations, attention = inputs
        output = _sample_levels(data, *levels, locations, attention)
        grads = torch.autograd.grad(output, inputs, grad_output)
    results = (grad_value, grad_sampling_loc, grad_attn_weight)
    for result, grad in zip(results, grads, strict=True):
        result += grad
