"""Heads that look at regions of interest, for one image and any number."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torchvision
from mmdet.models.roi_heads import CascadeRoIHead
from torch import Tensor

from mmefficientmod.deploy.detection.boxes import (
    Decoder,
    batched_nms,
    first,
)

Features = tuple[Tensor, ...]


def rewrite_roi_head(head: Any) -> None:
    """Replace what cannot be recorded for any number of regions.

    Args:
        head: A RoI head, changed in place.
    """
    for extractor in extractors(head):
        extractor.forward = partial(_extract, extractor)
    for box_head in stages(head.bbox_head):
        box_head.bbox_coder = Decoder(box_head.bbox_coder)


def stages(part: Any) -> list[Any]:
    """The stages of a part of a RoI head, which may have one only."""
    return list(part) if isinstance(part, torch.nn.ModuleList) else [part]


def extractors(head: Any) -> list[Any]:
    """The modules of a RoI head that extract regions."""
    parts = stages(head.bbox_roi_extractor)
    if head.with_mask:
        parts += stages(head.mask_roi_extractor)
    return parts


def predict_boxes(
    head: Any, features: Features, proposals: Tensor, meta: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``(K, 4)``, scores ``(K,)`` and labels ``(K,)`` of one image.

    Args:
        head: A rewritten RoI head.
        features: Levels of the pyramid, ``(1, C_i, H_i, W_i)``.
        proposals: ``(N, 4)``.
        meta: Description of the image.
    """
    rois = as_rois(proposals)
    if not isinstance(head, CascadeRoIHead):
        found = head._bbox_forward(features, rois)
        return _classify(
            head.bbox_head,
            rois[:, 1:],
            found['cls_score'],
            found['bbox_pred'],
            meta,
            head.test_cfg,
        )
    logits = []
    for stage, box_head in enumerate(head.bbox_head):
        found = head._bbox_forward(stage, features, rois)
        logits.append(found['cls_score'])
        if stage + 1 < head.num_stages:
            scores = found['cls_score']
            if box_head.custom_activation:
                scores = box_head.loss_cls.get_activation(scores)
            refined = box_head.regress_by_class(
                rois[:, 1:],
                scores[:, :-1].argmax(1),
                found['bbox_pred'],
                meta,
            )
            rois = as_rois(refined)
    return _classify(
        head.bbox_head[-1],
        rois[:, 1:],
        sum(logits) / len(logits),
        found['bbox_pred'],
        meta,
        head.test_cfg,
    )


def predict_masks(
    head: Any, features: Features, boxes: Tensor, labels: Tensor
) -> Tensor:
    """Probabilities of the masks of boxes, ``(K, h, w)``.

    Args:
        head: A RoI head.
        features: Levels of the pyramid, ``(1, C_i, H_i, W_i)``.
        boxes: ``(K, 4)``.
        labels: ``(K,)``.
    """
    found = mask_logits(head, features, as_rois(boxes))
    if stages(head.mask_head)[-1].class_agnostic:
        labels = torch.zeros_like(labels)
    masks = [_of_class(logits, labels).sigmoid() for logits in found]
    return sum(masks[1:], masks[0]) / len(masks)


def mask_logits(head: Any, features: Features, rois: Tensor) -> list[Tensor]:
    """Logits of masks, ``(K, classes, h, w)``, of each stage of a head."""
    if isinstance(head, CascadeRoIHead):
        return [
            head._mask_forward(stage, features, rois)['mask_preds']
            for stage in range(head.num_stages)
        ]
    return [head._mask_forward(features, rois)['mask_preds']]


def as_rois(boxes: Tensor) -> Tensor:
    """``(N, 4)`` with the index of the image, 0, before: ``(N, 5)``."""
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """``(K, classes, ...)`` and ``(K,)`` labels to ``(K, ...)``."""
    rows = torch.arange(labels.shape[0], device=labels.device)
    return values.flatten(0, 1)[rows * values.shape[1] + labels]


def _classify(
    head: Any,
    rois: Tensor,
    logits: Tensor,
    deltas: Tensor,
    meta: Mapping[str, Any],
    cfg: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the boxes whose score counts, and suppress overlaps.

    Args:
        head: A box head.
        rois: ``(N, 4)``.
        logits: ``(N, classes + 1)``.
        deltas: ``(N, 4)``, or ``(N, 4 * classes)``.
        meta: Description of the image.
        cfg: Threshold, NMS and number of boxes.
    """
    if head.custom_cls_channels:
        scores = head.loss_cls.get_activation(logits)
    else:
        scores = logits.softmax(1)
    scores = scores[:, :-1]
    rows, labels = (scores > cfg.score_thr).nonzero().unbind(1)
    position = rows * head.num_classes + labels
    scores = scores.reshape(-1)[position]
    if head.reg_class_agnostic:
        deltas = deltas[rows]
    else:
        deltas = deltas.reshape(-1, head.bbox_coder.encode_size)[position]
    boxes = head.bbox_coder.decode(
        rois[rows], deltas, max_shape=meta['img_shape']
    )
    kept = batched_nms(boxes, scores, labels, cfg.nms)
    kept = first(kept, cfg.max_per_img)
    return boxes[kept], scores[kept], labels[kept]


def _extract(
    extractor: Any,
    features: Features,
    rois: Tensor,
    roi_scale_factor: float | None = None,
) -> Tensor:
    """Features of ``(N, 5)`` regions, each of the level for its size."""
    layers = extractor.roi_layers
    if roi_scale_factor is not None:
        scaled = extractor.roi_rescale(rois, roi_scale_factor)
    else:
        scaled = rois
    if len(features) == 1:
        return _align(layers[0], features[0], rois)
    # The level is the logarithm of the size, rounded down. Comparisons are
    # exact where a logarithm that is computed in another way is not.
    sides = rois[:, 3:] - rois[:, 1:3]
    size = (sides[:, 0] * sides[:, 1]).sqrt() / extractor.finest_scale + 1e-6
    bounds = size.new_tensor([2.0**i for i in range(1, len(features))])
    levels = (size[:, None] >= bounds).sum(1)
    rows, found = [], []
    for level, (layer, x) in enumerate(zip(layers, features, strict=True)):
        row = (levels == level).nonzero()[:, 0]
        rows.append(row)
        found.append(_align(layer, x, scaled[row]))
    order = torch.cat(rows)
    back = torch.zeros_like(order).scatter(
        0, order, torch.arange(order.shape[0], device=order.device)
    )
    return torch.cat(found)[back]


def _align(layer: Any, x: Tensor, rois: Tensor) -> Tensor:
    """Features of regions in one level.

    mmcv writes an operator of its own; torchvision's is in ONNX.
    """
    return torchvision.ops.roi_align(
        x,
        rois,
        layer.output_size,
        layer.spatial_scale,
        layer.sampling_ratio,
        layer.aligned,
    )
