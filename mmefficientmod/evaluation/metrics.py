"""Metrics beyond those of the toolboxes."""

from __future__ import annotations

from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric

from mmefficientmod.registry import METRICS


@METRICS.register_module()
class PresentIoUMetric(IoUMetric):
    """MMSegmentation's IoUMetric, and mIoU over the classes present.

    A class that no ground truth holds counts as 0 in the mIoU when a single
    pixel is predicted as it. On a data set that holds but some of the
    classes, as a miniature, ``mIoU_present`` is what tells how good a model
    is; where all classes are present the two are the same.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Add ``mIoU_present`` in percent to the metrics of the parent.

        Args:
            results: For each image the areas of intersection, union,
                prediction and ground truth, ``(num_classes,)`` each.
        """
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersect, union, _, label = map(sum, zip(*results, strict=True))
        present = label > 0
        iou = intersect[present] / union[present]
        metrics['mIoU_present'] = round(100 * iou.mean().item(), 2)
        print_log(
            f'mIoU over the {len(iou)} classes present in the ground truth: '
            f'{metrics["mIoU_present"]}',
            logger='current',
        )
        return metrics
