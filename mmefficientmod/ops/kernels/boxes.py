"""Suppression, matching and overlap of boxes."""

import ctypes

import torch
import torchvision
from torch import Tensor

from .common import check, same_float


def _check_boxes(op: str, boxes: Tensor, columns: int = 4) -> None:
    check(
        boxes.dim() == 2 and boxes.shape[1] == columns,
        op,
        f'boxes must be (N, {columns}), got {tuple(boxes.shape)}',
    )


def _check_scores(op: str, boxes: Tensor, scores: Tensor) -> None:
    check(
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
        offset (int): Added to each width and height.
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
        offset (int): Added to each width and height, 0 or 1.

    Returns:
        Tensor: Indices of the boxes kept, best first, int64.
    """
    _check_boxes('nms', boxes)
    _check_scores('nms', boxes, scores)
    boxes, scores = same_float('nms', boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares with a float, torchvision's CPU kernel with a double. They
    # differ for boxes whose overlap is exactly, for example, 0.6.
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
    """Soft non-maximum suppression: lowers scores instead of dropping boxes.

    Args:
        boxes (Tensor): ``(N, 4)``.
        scores (Tensor): ``(N,)``.
        dets (Tensor): Result, ``(N, 5)``. The first K rows become the boxes
            kept with their new scores, best first; other rows do not change.
        iou_threshold (float): Least overlap at which methods 0 and 1 lower
            a score.
        sigma (float): Width of the Gaussian of method 2.
        min_score (float): A box whose score falls below this is dropped.
        method (int): 0 sets the score to 0 (naive), 1 is linear, 2 Gaussian.
        offset (int): Added to each width and height, 0 or 1.

    Returns:
        Tensor: Indices of the K boxes kept, int64.
    """
    _check_boxes('softnms', boxes)
    _check_scores('softnms', boxes, scores)
    check(
        dets.shape == (len(boxes), 5),
        'softnms',
        f'dets must be ({len(boxes)}, 5), got {tuple(dets.shape)}',
    )
    check(
        method in (0, 1, 2),
        'softnms',
        f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method}',
    )
    boxes, scores = same_float('softnms', boxes, scores)
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
            # As in mmcv, the last boxes move to the places of those dropped.
            # The order matters, since it decides between equal scores.
            holes = (~keep[:left]).nonzero()[:, 0]
            last = left + keep[left:].nonzero()[:, 0].flip(0)
            rest[holes] = rest[last]
            rest_inds[holes] = rest_inds[last]
        i += 1
        count = i + left
    dets[:count] = rows[:count]
    return inds[:count]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression that groups dropped boxes by the kept box.

    Args:
        dets (Tensor): ``(N, 5)``, boxes and scores.
        iou_threshold (float): A box that overlaps a better one by this or
            more is dropped.

    Returns:
        list[list[int]]: For each box kept, best first, its index and the
        indices of the boxes that it dropped, by descending score.
    """
    _check_boxes('nms_match', dets, columns=5)
    (dets,) = same_float('nms_match', dets)
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
        aligned (bool): Compare box i with box i only; M must equal N.
        offset (int): Added to each width and height, 0 or 1.
    """
    op = 'bbox_overlaps'
    _check_boxes(op, bboxes1)
    _check_boxes(op, bboxes2)
    check(mode in (0, 1), op, f'mode must be 0 (iou) or 1 (iof), got {mode}')
    size = (len(bboxes1),) if aligned else (len(bboxes1), len(bboxes2))
    check(
        ious.shape == size and (not aligned or len(bboxes1) == len(bboxes2)),
        op,
        f'{len(bboxes1)} and {len(bboxes2)} boxes, {aligned=}, do not go '
        f'with a result of {tuple(ious.shape)}',
    )
    bboxes1, bboxes2 = same_float(op, bboxes1, bboxes2)
    if not aligned:
        bboxes1 = bboxes1[:, None]
    ious.copy_(_overlap(bboxes1, bboxes2, offset, over_first=mode == 1))
