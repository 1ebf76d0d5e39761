"""Classifiers of MMPretrain as a function from images to scores."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.graph import BATCH, ExportGraph


class ClassifierGraph(ExportGraph):
    """Images to ``scores``, ``(N, classes)``.

    The scores of a head that chooses one class are a softmax of its logits,
    those of a head for several labels a sigmoid.

    Args:
        model: A classifier of MMPretrain.

    Raises:
        ConfigError: If its scores are computed in another way.
    """

    task = 'cls'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.outputs = {'scores': {0: BATCH}}
        head: Any = getattr(model, 'head', None)
        own: Any = ClsHead
        self.several = isinstance(head, MultiLabelClsHead)
        if self.several:
            own = MultiLabelClsHead
        # A model of timm or Hugging Face has no head of MMPretrain.
        wrapped = head is None and hasattr(model, 'loss_module')
        if not wrapped and (
            not isinstance(head, own)
            or type(head)._get_predictions is not own._get_predictions
        ):
            raise ConfigError(
                f'{type(model).__name__} with the head {type(head).__name__} '
                'cannot be exported: classifiers whose head is a ClsHead or a '
                'MultiLabelClsHead can, and for others the backbone '
                '(--part backbone)'
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to ``(N, classes)``."""
        logits = self.model(image, mode='tensor')
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ConfigError(
                f'{type(self.model).__name__} gives no single tensor of '
                'logits (N, classes), so that it cannot be exported; its '
                'backbone can (--part backbone)'
            )
        return (logits.sigmoid() if self.several else logits.softmax(1),)

    def reference(self, image: Tensor) -> tuple[Tensor, ...]:
        """The scores that MMPretrain predicts."""
        samples = self.model(image, mode='predict')
        return (torch.stack([sample.pred_score for sample in samples]),)
