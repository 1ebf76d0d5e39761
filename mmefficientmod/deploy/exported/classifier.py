"""An exported classifier as a model of MMPretrain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpretrain.models.classifiers.base import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor

from mmefficientmod.deploy.exported.base import FileModel
from mmefficientmod.registry import MODELS


@MODELS.register_module()
class ExportedClassifier(BaseClassifier):
    """Predicts by an exported file.

    Args:
        file: The file.
        threads: CPU threads. Default: the library's choice.
        threshold: Least score of a class, if an image may have several.
            Default: 0.5.
        data_preprocessor: Dict of the data preprocessor.
    """

    def __init__(
        self,
        file: str,
        threads: int | None = None,
        threshold: float = 0.5,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.run_file = FileModel(file, threads)
        self.threshold = threshold
        self.several = bool(self.run_file.file.described('several_labels'))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'predict',
    ) -> Any:
        """``(N, 3, H, W)`` to scores ``(N, classes)`` or data samples."""
        scores = self.run_file(inputs)['scores']
        if mode == 'tensor':
            return scores
        if data_samples is None:
            data_samples = [DataSample() for _ in scores]
        for sample, score in zip(data_samples, scores, strict=True):
            label = score.argmax()
            if self.several:
                label = (score >= self.threshold).nonzero()[:, 0]
            sample.set_pred_score(score).set_pred_label(label)
        return data_samples
