"""An exported segmentor as a model of MMSegmentation."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from mmseg.models import BaseSegmentor, EncoderDecoder
from torch import Tensor

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.exported.base import FileModel
from mmefficientmod.deploy.segmentor import LABELS, LOGITS
from mmefficientmod.registry import MODELS


@MODELS.register_module()
class ExportedSegmentor(EncoderDecoder):
    """Predicts by an exported file, on whole images or sliding windows.

    Args:
        file: The file. If it gives labels, they are resized to the image as
            logits of 0 and 1.
        num_classes: Number of classes.
        threads: CPU threads. Default: the library's choice.
        test_cfg: Settings of the test: ``mode``, and ``crop_size`` and
            ``stride`` for sliding windows.
        align_corners: How logits are resized to the image. Default: False.
        threshold: Of a model with a single logit. Default: 0.3.
        data_preprocessor: Dict of the data preprocessor.

    Raises:
        ConfigError: If the file gives labels, and the test slides a window.
    """

    def __init__(
        self,
        file: str,
        num_classes: int,
        threads: int | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        align_corners: bool = False,
        threshold: float = 0.3,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        # Not that of EncoderDecoder, which builds the network.
        BaseSegmentor.__init__(self, data_preprocessor=data_preprocessor)
        self.run_file = FileModel(file, threads)
        self.test_cfg = test_cfg
        self.align_corners = align_corners
        self.num_classes = self.out_channels = num_classes
        self.decode_head = SimpleNamespace(threshold=threshold)
        mode = (test_cfg or {}).get('mode', 'whole')
        outputs = self.run_file.file.described('outputs', [LOGITS])
        if mode == 'slide' and LOGITS not in outputs:
            raise ConfigError(
                f'{file} gives the labels of pixels, and the config tests by '
                'sliding windows, whose logits are averaged: export it with '
                f'--output {LOGITS}'
            )

    def encode_decode(
        self, inputs: Tensor, batch_img_metas: list[dict]
    ) -> Tensor:
        """``(N, 3, H, W)`` to logits ``(N, classes, H, W)``."""
        found = self.run_file(inputs)
        if LOGITS in found:
            return found[LOGITS].to(inputs.device)
        labels = found[LABELS].long().to(inputs.device)
        if self.out_channels == 1:
            # A logit on either side of any threshold.
            return (labels[:, None] * 2.0 - 1) * 100
        return F.one_hot(labels, self.out_channels).permute(0, 3, 1, 2).float()
