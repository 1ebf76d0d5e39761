"""Heads that predict at each position, as functions that can be recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from mmdet.models.dense_heads import RPNHead, YOLOXHead
from mmdet.structures.bbox import cat_boxes
from mmengine.structures import InstanceData
from torch import Tensor

from mmefficientmod.deploy.detection.boxes import (
    CODERS,
    Decoder,
    batched_nms,
    best,
    filter_scores_and_topk,
    first,
)

_HEADS = 'mmdet.models.dense_heads'
_FILTER = 'filter_scores_and_topk'


@contextmanager
def filtering() -> Iterator[None]:
    """Inside of the block, heads choose candidates by our function."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith(_HEADS) and _FILTER in vars(module):
                stack.enter_context(
                    mock.patch.object(module, _FILTER, filter_scores_and_topk)
                )
        yield


def rewrite_dense_head(head: Any) -> None:
    """Replace what cannot be recorded for any number of boxes.

    Args:
        head: The head, changed in place.
    """
    kind = type(head)
    if type(getattr(head, 'bbox_coder', None)) in CODERS:
        head.bbox_coder = Decoder(head.bbox_coder)
    if kind._predict_by_feat_single is RPNHead._predict_by_feat_single:
        head._predict_by_feat_single = partial(_propose, head)
    elif kind._bbox_post_process is YOLOXHead._bbox_post_process:
        head._bbox_post_process = _suppress
    else:
        head._bbox_post_process = _post_process


def predict_dense(
    head: Any, features: tuple[Tensor, ...], meta: Mapping[str, Any]
) -> InstanceData:
    """What a rewritten head finds in one image.

    Args:
        head: The head.
        features: Levels of the pyramid, ``(1, C_i, H_i, W_i)``.
        meta: Description of the image.
    """
    with filtering():
        (found,) = head.predict_by_feat(
            *head(features), batch_img_metas=[meta]
        )
    return found


def _propose(
    head: Any,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: list[Tensor],
    mlvl_priors: list[Any],
    img_meta: Mapping[str, Any],
    cfg: Mapping[str, Any] | None = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> InstanceData:
    """Proposals of an RPN, the best of each level."""
    cfg = head.test_cfg if cfg is None else cfg
    dim = head.bbox_coder.encode_size
    all_scores, all_deltas, all_priors, levels = [], [], [], []
    for level, (logits, deltas, priors) in enumerate(
        zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
    ):
        logits = logits.permute(1, 2, 0).reshape(-1, head.cls_out_channels)
        if head.use_sigmoid_cls:
            scores = logits.sigmoid()[:, 0]
        else:
            scores = logits.softmax(1)[:, 0]
        scores, order = best(scores, cfg.get('nms_pre', -1))
        deltas = deltas.permute(1, 2, 0).reshape(-1, dim)
        all_scores.append(scores)
        all_deltas.append(deltas[order])
        all_priors.append(priors[order])
        levels.append(torch.full_like(order, level))
    found = InstanceData()
    found.bboxes = head.bbox_coder.decode(
        cat_boxes(all_priors),
        torch.cat(all_deltas),
        max_shape=img_meta['img_shape'],
    )
    found.scores = torch.cat(all_scores)
    found.labels = torch.cat(levels)
    found = _post_process(found, cfg)
    found.labels = torch.zeros_like(found.labels)
    return found


def _post_process(
    results: InstanceData,
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
    img_meta: Mapping[str, Any] | None = None,
) -> InstanceData:
    """Drop small boxes, suppress those that overlap, keep the best."""
    if 'score_factors' in results:
        factors = results.pop('score_factors')
        results.scores = results.scores * factors
    smallest = cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        sides = results.bboxes[:, 2:] - results.bboxes[:, :2]
        large = (sides > smallest).all(1).nonzero()[:, 0]
        results = results[large]
    return _suppress(results, cfg, limit=cfg.get('max_per_img', -1))


def _suppress(
    results: InstanceData,
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
    img_meta: Mapping[str, Any] | None = None,
    limit: int = -1,
) -> InstanceData:
    """Suppress boxes that overlap, and keep at most ``limit``."""
    kept = batched_nms(
        results.bboxes, results.scores, results.labels, cfg.get('nms')
    )
    return results[first(kept, limit)]
