"""An exported detector as a model of MMDetection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmefficientmod.deploy.exported.base import FileModel
from mmefficientmod.registry import MODELS


@MODELS.register_module()
class ExportedDetector(BaseDetector):
    """Predicts by an exported file, one image after the other.

    Args:
        file: The file.
        threads: CPU threads. Default: the library's choice.
        mask_threshold: Least probability of a pixel of a mask. Default: 0.5.
        data_preprocessor: Dict of the data preprocessor.
    """

    def __init__(
        self,
        file: str,
        threads: int | None = None,
        mask_threshold: float = 0.5,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.run_file = FileModel(file, threads)
        self.mask_cfg = ConfigDict(mask_thr_binary=mask_threshold)
        # Only its way to paste masks into the image is used.
        self.mask_head = FCNMaskHead(
            num_convs=0, in_channels=1, num_classes=1, class_agnostic=True
        )

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: list[DetDataSample],
        rescale: bool = True,
    ) -> list[DetDataSample]:
        """Predict on images.

        Args:
            batch_inputs: ``(N, 3, H, W)``, padded.
            batch_data_samples: The sizes of the images.
            rescale: Whether boxes and masks are those of the image before it
                was resized. Default: True.
        """
        results = []
        for image, sample in zip(
            batch_inputs, batch_data_samples, strict=True
        ):
            meta = sample.metainfo
            height, width = meta['img_shape'][:2]
            # The file pads the image itself.
            found = self.run_file(image[None, :, :height, :width])
            results.append(self._instances(found, meta, rescale))
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _instances(
        self, found: dict[str, Tensor], meta: dict, rescale: bool
    ) -> InstanceData:
        instances = InstanceData(
            bboxes=found['boxes'],
            scores=found['scores'],
            labels=found['labels'],
        )
        if 'masks' in found:
            (instances,) = self.mask_head.predict_by_feat(
                [found['masks'][:, None]],
                [instances],
                [meta],
                self.mask_cfg,
                rescale=rescale,
                activate_map=True,
            )
        elif rescale:
            instances.bboxes /= instances.bboxes.new_tensor(
                meta['scale_factor']
            ).repeat(2)
        return instances

    def loss(self, *args: Any) -> Any:
        """An exported file cannot be trained."""
        raise NotImplementedError('an exported file cannot be trained')

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: Any = None
    ) -> list[dict[str, Tensor]]:
        return [self.run_file(image[None]) for image in batch_inputs]

    def extract_feat(self, batch_inputs: Tensor) -> Tensor:
        """An exported file gives no features."""
        raise NotImplementedError('an exported file gives no features')
