"""Decoding, choosing and suppressing boxes, without a branch on their number.

A tracer records one image. MMDetection asks how many candidates there are, and
takes another way if there is none; the recorded graph would keep that answer
for all images. The functions here have one way. They are correct for any
number, none included.

Boxes are ``(x1, y1, x2, y2)`` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from mmdet.models.task_modules.coders import (
    DeltaXYWHBBoxCoder,
    DistancePointBBoxCoder,
    TBLRBBoxCoder,
)
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

# Height and width; numbers, or tensors while a tracer records.
Size = Sequence[Any]
# Coders of boxes that a Decoder can take the place of.
CODERS = (DeltaXYWHBBoxCoder, DistancePointBBoxCoder, TBLRBBoxCoder)


def clamp_boxes(boxes: Tensor, size: Size) -> Tensor:
    """Clip ``(K, 4)`` to an image.

    Args:
        boxes: The boxes.
        size: Height and width of the image.
    """
    height, width = size
    one = boxes.new_ones(1)
    limits = torch.cat([one * n for n in (width, height, width, height)])
    return torch.minimum(boxes.clamp(min=0), limits)


def at_most(length: Any, limit: int) -> Any:
    """The smaller of two numbers, of which the first may be recorded."""
    if isinstance(length, Tensor):
        return length.clamp(max=limit)
    return min(length, limit)


def first(values: Tensor, limit: int) -> Tensor:
    """The first rows of a tensor; all if the limit is not positive."""
    return values[:limit] if limit > 0 else values


def best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The highest of ``(N,)`` scores, in falling order, and their indices.

    Args:
        scores: The scores.
        limit: How many at most. 0 or less: all.
    """
    number = scores.shape[0]
    return scores.topk(at_most(number, limit) if limit > 0 else number)


def filter_scores_and_topk(
    scores: Tensor,
    score_thr: float,
    topk: int,
    results: Any = None,
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """MMDetection's function of that name, for any number of candidates.

    Args:
        scores: ``(N, classes)``.
        score_thr: Scores above it count.
        topk: How many at most. 0 or less: all.
        results: A tensor ``(N, ...)``, or a list or dict of them.

    Returns:
        Scores, labels and rows, ``(K,)`` each, and the rows of ``results``.
    """
    candidates = (scores > score_thr).nonzero()
    flat = scores.reshape(-1)[_flat(candidates, scores.shape[1])]
    chosen, order = best(flat, topk)
    rows, labels = candidates[order].unbind(1)
    if isinstance(results, dict):
        results = {k: v[rows] for k, v in results.items()}
    elif isinstance(results, list):
        results = [v[rows] for v in results]
    elif results is not None:
        results = results[rows]
    return chosen, labels, rows, results


def _flat(index: Tensor, columns: Any) -> Tensor:
    """Positions in a flattened matrix of ``(K, 2)`` rows and columns."""
    return index[:, 0] * columns + index[:, 1]


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, config: Mapping | None
) -> Tensor:
    """Non-maximum suppression within each group.

    As in mmcv, the boxes of each group are moved to a place of their own.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        groups: Group of each box, ``(N,)`` int64.
        config: ``iou_threshold``, and optionally ``class_agnostic`` and
            ``max_num``. None suppresses nothing.

    Returns:
        Indices of the boxes that are kept, from the highest score on.
    """
    if config is None:
        return best(scores, 0)[1]
    if not config.get('class_agnostic', False):
        # The maximum of no number is an error, so one is added that is lower
        # than any coordinate.
        lowest = boxes.new_full((1,), -1e9)
        largest = torch.cat([boxes.reshape(-1), lowest]).max()
        boxes = boxes + (groups.to(boxes.dtype) * (largest + 1))[:, None]
    kept = torchvision.ops.nms(boxes, scores, float(config['iou_threshold']))
    return first(kept, config.get('max_num', -1))


class Decoder:
    """A box coder of MMDetection that decodes any number of boxes.

    Args:
        coder: The coder, of one of ``CODERS``.
    """

    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self.encode_size: int = coder.encode_size

    def decode(
        self, priors: Any, predictions: Tensor, max_shape: Size | None = None
    ) -> Tensor:
        """Boxes ``(N, 4)`` of priors ``(N, 2 or 4)`` and predictions.

        Args:
            priors: Boxes or points.
            predictions: ``(N, 4)``.
            max_shape: Height and width to which the boxes are clipped.
        """
        coder = self._coder
        if type(coder) is DeltaXYWHBBoxCoder:
            boxes = _decode_deltas(coder, get_box_tensor(priors), predictions)
        elif type(coder) is DistancePointBBoxCoder:
            boxes = torch.cat(
                [
                    priors - predictions[:, :2],
                    priors + predictions[:, 2:],
                ],
                dim=1,
            )
        else:
            boxes = get_box_tensor(coder.decode(priors, predictions))
        if max_shape is None or not coder.clip_border:
            return boxes
        return clamp_boxes(boxes, max_shape)


def _decode_deltas(coder: Any, priors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes of ``(N, 4)`` priors, moved and scaled by deltas."""
    deltas = deltas * deltas.new_tensor([coder.stds])
    deltas = deltas + deltas.new_tensor([coder.means])
    centre = (priors[:, :2] + priors[:, 2:]) * 0.5
    size = priors[:, 2:] - priors[:, :2]
    shift = size * deltas[:, :2]
    growth = deltas[:, 2:]
    largest = abs(math.log(16 / 1000))  # of the logarithm, in MMDetection
    if coder.add_ctr_clamp:
        shift = shift.clamp(min=-coder.ctr_clamp, max=coder.ctr_clamp)
        growth = growth.clamp(max=largest)
    else:
        growth = growth.clamp(min=-largest, max=largest)
    centre = centre + shift
    half = size * growth.exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=1)
