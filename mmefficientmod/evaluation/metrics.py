"""Metrics that the toolboxes do not have."""

from __future__ import annotations

import torch
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric

from mmefficientmod.registry import METRICS


@METRICS.register_module()
class PresentIoUMetric(IoUMetric):
    """MMSegmentation's IoUMetric, and the mIoU over the classes present.

    In mIoU a class that is missing from the ground truth counts with an IoU of
    0 as soon as one pixel is predicted as this class. A miniature has only a
    few of the classes; there ``mIoU_present`` tells how good a model is. If
    the ground truth has all classes, both are equal.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Add ``mIoU_present`` in percent to the metrics of the parent.

        Args:
            results: For each image the areas of intersection, union,
                prediction and ground truth in pixels, ``(num_classes,)`` each.

        Returns:
            Name -> value in percent.
        """
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersect, union, _, label = (
            sum(areas, torch.zeros(())) for areas in zip(*results, strict=True)
        )
        present = label > 0
        iou = intersect[present] / union[present]
        metrics['mIoU_present'] = round(100 * iou.mean().item(), 2)
        print_log(
            f'mIoU over the {len(iou)} classes present in the ground truth: '
            f'{metrics["mIoU_present"]}',
            logger='current',
        )
        return metrics
