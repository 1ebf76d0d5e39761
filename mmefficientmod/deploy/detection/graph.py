"""A detector of MMDetection as a function from an image to detections."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from mmefficientmod.deploy.detection.dense import (
    predict_dense,
    rewrite_dense_head,
)
from mmefficientmod.deploy.detection.rois import (
    mask_logits,
    predict_boxes,
    predict_masks,
    rewrite_roi_head,
)
from mmefficientmod.deploy.detection.support import check_detector
from mmefficientmod.deploy.graph import ExportGraph, pad_to_multiple

BOXES, SCORES, LABELS, MASKS = 'boxes', 'scores', 'labels', 'masks'
DETECTIONS = 'detections'


class DetectorGraph(ExportGraph):
    """One image to its detections, from the highest score on.

    - ``boxes``: ``(K, 4)``, ``(x1, y1, x2, y2)`` in pixels of the image.
    - ``scores``: ``(K,)``.
    - ``labels``: ``(K,)`` int64, from 0.
    - ``masks``, of a detector with a mask head: ``(K, 28, 28)``, the
      probability that a part of the box belongs to the object. They are
      pasted into the image outside of the graph.

    The image is padded in the graph as the data preprocessor pads it, and the
    boxes are clipped to its size before. Where a config pads in its pipeline
    instead, as those of RTMDet do, the image has to be padded already.

    Run with the same results as MMDetection: Mask, Faster and Cascade (Mask)
    R-CNN, also with PAFPN, double heads, the training of Dynamic R-CNN or the
    Seesaw loss; RPN; RetinaNet, FreeAnchor, FSAF, ATSS, GFL, FCOS,
    AutoAssign, FoveaBox, CenterNet with the head of its second version, YOLOF,
    YOLOv3, YOLOX and RTMDet.

    Args:
        model: A detector of MMDetection. The graph records a copy of it that
            has the same weights.

    Raises:
        ConfigError: If it cannot be exported, with the reason.
    """

    task = 'det'
    batched = False

    def __init__(self, model: nn.Module) -> None:
        check_detector(model)
        super().__init__(model)
        names = [BOXES, SCORES, LABELS]
        self.two_stage = isinstance(model, TwoStageDetector)
        self.masks = self.two_stage and self.model.roi_head.with_mask
        if self.masks:
            names.append(MASKS)
        self.outputs = {name: {0: DETECTIONS} for name in names}
        preprocessor = self.model.data_preprocessor
        self.divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        self.pad_value = getattr(preprocessor, 'pad_value', 0)
        weights = chain(model.parameters(), model.buffers())
        self.recorded: Any = copy.deepcopy(model, {id(w): w for w in weights})
        if self.two_stage:
            rewrite_dense_head(self.recorded.rpn_head)
            rewrite_roi_head(self.recorded.roi_head)
        else:
            rewrite_dense_head(self.recorded.bbox_head)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(1, 3, H, W)``, normalised, to the detections."""
        model = self.recorded
        x, meta = self._prepare(image)
        features = model.extract_feat(x)
        if not self.two_stage:
            found = predict_dense(model.bbox_head, features, meta)
            return found.bboxes, found.scores, found.labels
        proposals = predict_dense(model.rpn_head, features, meta)
        boxes, scores, labels = predict_boxes(
            model.roi_head, features, proposals.bboxes, meta
        )
        if not self.masks:
            return boxes, scores, labels
        masks = predict_masks(model.roi_head, features, boxes, labels)
        return boxes, scores, labels, masks

    def reference(self, image: Tensor) -> tuple[Tensor, ...]:
        """The same by the functions of MMDetection."""
        model = self.model
        x, meta = self._prepare(image)
        sample = DetDataSample(metainfo=meta)
        features = model.extract_feat(x)
        if not self.two_stage:
            (found,) = model.bbox_head.predict(features, [sample])
            return found.bboxes, found.scores, found.labels
        head = model.roi_head
        proposals = model.rpn_head.predict(features, [sample])
        (found,) = head.predict_bbox(
            features, [meta], proposals, head.test_cfg
        )
        tensors = found.bboxes, found.scores, found.labels
        if not self.masks:
            return tensors
        rois = bbox2roi([found.bboxes])
        logits = mask_logits(head, features, rois)
        masks = torch.stack([x.sigmoid() for x in logits]).mean(0)
        classes = torch.zeros_like(found.labels)
        if masks.shape[1] > 1:
            classes = found.labels
        return *tensors, masks[range(len(classes)), classes]

    def _prepare(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The padded image and its description."""
        x = pad_to_multiple(image, self.divisor, self.pad_value)
        size, padded = image.shape[-2:], x.shape[-2:]
        return x, dict(
            img_shape=size,
            ori_shape=size,
            pad_shape=padded,
            batch_input_shape=padded,
            scale_factor=(1.0, 1.0),
        )
