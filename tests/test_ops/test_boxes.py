"""Boxes: nms, soft-nms, nms_match and overlaps."""

import math
from itertools import product
from types import ModuleType

import pytest
import torch
from formulas import area, common_area, indices, iou, random_boxes, uniform
from torch import Tensor
from torch.testing import assert_close

from mmefficientmod.ops import kernels


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nms_agrees_with_formula(dtype: torch.dtype, offset: int) -> None:
    boxes, scores = random_boxes(40).to(dtype), uniform(40).to(dtype)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        box = boxes[i].tolist()
        if all(iou(boxes[k].tolist(), box, offset) <= 0.3 for k in kept):
            kept.append(i)
    assert 3 < len(kept) < 37
    ours = kernels.nms(boxes, scores, iou_threshold=0.3, offset=offset)
    assert ours.tolist() == kept


def test_nms_offset_changes_the_overlap() -> None:
    # Without the offset these overlap by 1 / 3, with it by 2 / 4 = 0.5.
    boxes = torch.tensor([[0.0, 0, 2, 0.5], [1, 0, 3, 0.5]])
    scores = torch.tensor([0.9, 0.8])
    assert len(kernels.nms(boxes, scores, 0.4, 0)) == 2
    assert len(kernels.nms(boxes, scores, 0.4, 1)) == 1


def test_nms_keeps_a_box_exactly_at_the_threshold() -> None:
    # IoU 3 / 5; as a float, 0.6 is more than the double 0.6.
    boxes = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]])
    assert len(kernels.nms(boxes, torch.tensor([0.9, 0.8]), 0.6, 0)) == 2


def test_batched_nms_through_mmcv(mmcv_ops: ModuleType) -> None:
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
def test_softnms_agrees_with_formula(
    dtype: torch.dtype, method: int, offset: int
) -> None:
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
    # Box 0 removes boxes 1 and 2; the last ones, 5 and 4, take their places.
    corner = torch.tensor([0.0, 0, 0, 100, 200, 300])
    boxes = torch.stack([corner, corner, corner + 9, corner + 9], 1)
    scores = torch.tensor([0.9, 0.8, 0.8, 0.5, 0.5, 0.5])
    inds = kernels.softnms(
        boxes, scores, torch.zeros(6, 5), 0.3, 0.5, 0.1, 0, 0
    )
    assert inds.tolist() == [0, 5, 4, 3]


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_through_mmcv(mmcv_ops: ModuleType, method: str) -> None:
    boxes, scores = random_boxes(20).float(), uniform(20).float()
    dets, inds = mmcv_ops.soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.1, method=method
    )
    number = ['naive', 'linear', 'gaussian'].index(method)
    kept, new = naive_softnms(boxes.tolist(), scores.tolist(), number, 0)
    assert inds.tolist() == kept
    assert_close(dets[:, :4], boxes[kept])
    assert_close(dets[:, 4], torch.tensor(new))


def test_nms_match_agrees_with_formula() -> None:
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


def naive_bbox_overlaps(
    first: Tensor, second: Tensor, aligned: bool, mode: int, offset: int
) -> Tensor:
    table = uniform(len(first), len(second))
    for i, j in indices(*table.shape):
        a, b = first[i].tolist(), second[j].tolist()
        over_first = common_area(a, b, offset) / area(a, offset)
        table[i, j] = over_first if mode else iou(a, b, offset)
    return table.diagonal() if aligned else table


each_overlap = pytest.mark.parametrize(
    ('aligned', 'mode', 'offset'),
    list(product((False, True), (0, 1), (0, 1))),
)


@each_overlap
def test_bbox_overlaps_agrees_with_formula(
    aligned: bool, mode: int, offset: int
) -> None:
    first, second = random_boxes(4), random_boxes(4)
    expected = naive_bbox_overlaps(first, second, aligned, mode, offset)
    ours = torch.zeros_like(expected)
    kernels.bbox_overlaps(first, second, ours, mode, aligned, offset)
    assert_close(ours, expected)


@each_overlap
def test_bbox_overlaps_through_mmcv(
    mmcv_ops: ModuleType, aligned: bool, mode: int, offset: int
) -> None:
    first, second = random_boxes(4), random_boxes(4)
    expected = naive_bbox_overlaps(first, second, aligned, mode, offset)
    name = ['iou', 'iof'][mode]
    ours = mmcv_ops.bbox_overlaps(first, second, name, aligned, offset)
    assert_close(ours, expected)


def test_no_boxes_give_empty_results() -> None:
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


BOXES, SCORES = torch.zeros(3, 4), torch.zeros(3)
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
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
