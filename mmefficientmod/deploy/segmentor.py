"""Segmentors of MMSegmentation as a function from images to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.graph import (
    BATCH,
    HEIGHT,
    WIDTH,
    ExportGraph,
    pad_to_multiple,
)

LOGITS, LABELS = 'logits', 'labels'


class SegmentorGraph(ExportGraph):
    """Images to the classes of their pixels.

    The images are padded to the size that the config tests with, and what
    belongs to the padding is cut off.

    Args:
        model: A segmentor of the encoder-decoder kind.
        output: ``'logits'``, ``(N, classes, H, W)``, which are 0 where a
            single channel decides; or ``'labels'``, ``(N, H, W)``, uint8 for
            up to 256 classes, else int32.

    Raises:
        ConfigError: If the model is of another kind.
    """

    task = 'seg'

    def __init__(self, model: nn.Module, output: str = LOGITS) -> None:
        super().__init__(model)
        if not hasattr(model, 'encode_decode'):
            raise ConfigError(
                f'{type(model).__name__} cannot be exported: it is no '
                'segmentor of the encoder-decoder kind; its backbone can '
                '(--part backbone)'
            )
        self.output = output
        axes = {0: BATCH, 1: HEIGHT, 2: WIDTH}
        if output == LOGITS:
            axes = {0: BATCH, 2: HEIGHT, 3: WIDTH}
        self.outputs = {output: axes}
        preprocessor = self.model.data_preprocessor
        settings = getattr(preprocessor, 'test_cfg', None) or {}
        self.divisor = settings.get('size_divisor') or 1
        self.pad_value = getattr(preprocessor, 'pad_val', 0)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to the logits or labels of its pixels."""
        height, width = image.shape[-2:]
        x = pad_to_multiple(image, self.divisor, self.pad_value)
        # MMSegmentation resizes the logits to a size of this type, whatever
        # else it is told of the image.
        meta = dict(img_shape=x.shape[2:], ori_shape=x.shape[2:])
        logits = self.model.encode_decode(x, [meta])
        if self.divisor > 1:
            logits = logits[..., :height, :width]
        return (self._labels(logits) if self.output == LABELS else logits,)

    def _labels(self, logits: Tensor) -> Tensor:
        """``(N, classes, H, W)`` to ``(N, H, W)``."""
        classes = logits.shape[1]
        if classes == 1:
            threshold = self.model.decode_head.threshold
            labels = logits[:, 0].sigmoid() > threshold
        else:
            labels = logits.argmax(1)
        return labels.to(torch.uint8 if classes <= 256 else torch.int32)
