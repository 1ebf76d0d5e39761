"""A segmentor of MMSegmentation that learns from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.distill.loss import Distillation
from mmefficientmod.models.distill.teacher import Teacher
from mmefficientmod.registry import MODELS


@MODELS.register_module()
class DistilledSegmentor(EncoderDecoder):
    """MMSegmentation's ``EncoderDecoder``, trained with a teacher.

    Its parameters and predictions are those of the plain segmentor, and
    checkpoints of one load into the other. The losses of the decode head are
    weighted by ``1 - alpha``, the distillation by ``alpha``. Auxiliary heads
    learn from the labels only, as in the plain segmentor.

    The distillation compares the logits of pixels at the student's
    resolution, in Semantic FPN a quarter of the image's height and width. The
    teacher's logits are resized to it. Pixels whose label is ``ignore_index``
    do not count, as in the loss of the head: they are padding or of none of
    the classes, and the teacher was not trained on such pixels. The loss is
    the mean over all others.

    Args:
        *args: Arguments of ``EncoderDecoder``.
        teacher: Arguments of :class:`Teacher`, with ``checkpoint``.
        distill: Arguments of :class:`Distillation`. Default: soft targets,
            ``tau=1``, ``alpha=0.9``.
        **kwargs: Arguments of ``EncoderDecoder``.

    Raises:
        ConfigError: If the decode head has its own way to compute a loss,
            which may not be from the logits of all pixels.

    Example:
        >>> _base_ = 'fpn_efficientmod_xxs_ade20k.py'
        >>> model = dict(
        ...     type='mmefficientmod.DistilledSegmentor',
        ...     teacher=dict(
        ...         model='fpn_efficientmod_s_ade20k.py',
        ...         checkpoint='fpn_efficientmod_s.pth',
        ...     ),
        ...     distill=dict(alpha=0.5),
        ... )
    """

    def __init__(
        self,
        *args: Any,
        teacher: Mapping[str, Any],
        distill: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if type(self.decode_head).loss is not BaseDecodeHead.loss:
            raise ConfigError(
                f'{type(self.decode_head).__name__} has a loss of its own, '
                'which may not be from the logits of all pixels; distillation '
                "compares those with the teacher's"
            )
        self.distill = Distillation(**(distill or {}))
        self.teacher = Teacher(
            **teacher,
            student=self.data_preprocessor,
            num_classes=self.out_channels,
            per_pixel=True,
        )

    def loss(
        self, inputs: Tensor, data_samples: list[SegDataSample]
    ) -> dict[str, Tensor | list[Tensor]]:
        """The losses of a batch.

        Args:
            inputs: Images ``(N, C, H, W)``, normalised.
            data_samples: The labels ``(1, H, W)`` of each image.

        Returns:
            The losses of the decode head times ``1 - alpha``,
            ``loss_distill`` times ``alpha``, and the losses of auxiliary
            heads.

        Raises:
            ConfigError: If the teacher cannot be built, its logits do not fit
                those of the student, or the student has several logits.
            CheckpointError: If the teacher's weights cannot be read or do not
                fit.
        """
        # Teacher first, so that its activations are freed before the student
        # runs.
        targets = self.teacher(inputs)
        feats = self.extract_feat(inputs)
        head = self.decode_head
        logits = head.forward(feats)
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f'the student has a {type(head).__name__}, which gives no '
                'single tensor of logits (N, classes, H, W) in training to '
                "compare with the teacher's"
            )
        size = logits.shape[2:]
        if targets.shape[2:] != size:
            targets = F.interpolate(
                targets,
                size,
                mode='bilinear',
                align_corners=self.align_corners,
            )
        labels = torch.stack([x.gt_sem_seg.data for x in data_samples])
        # Each logit is compared at the label in the centre of its pixels.
        labels = F.interpolate(labels.float(), size, mode='nearest-exact')
        valid = labels[:, 0] != head.ignore_index
        losses = self.distill.mix(
            add_prefix(head.loss_by_feat(logits, data_samples), 'decode'),
            self.distill(logits, targets, valid),
        )
        if self.with_auxiliary_head:
            losses.update(
                self._auxiliary_head_forward_train(feats, data_samples)
            )
        return losses
