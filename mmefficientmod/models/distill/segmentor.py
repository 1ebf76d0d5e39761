"""A segmentor of MMSegmentation that learns from a teacher, pixel by pixel."""

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

    It has the parameters, names and results of the plain segmentor, so that
    checkpoints go from one to the other. The distillation takes the place of
    the share ``alpha`` in the losses of the decode head; auxiliary heads
    learn from the labels alone, as before.

    Pixels are compared where the student has logits, at a quarter of the
    image's sides in Semantic FPN, to which the teacher's logits are resized.
    A pixel whose label is ``ignore_index`` does not count, as in the head's
    own loss: it is padding, or of none of the classes, and the teacher was
    never told what to say there. The mean is over those that count.

    Args:
        *args: As those of ``EncoderDecoder``.
        teacher: Arguments of :class:`Teacher`, with ``checkpoint``.
        distill: Arguments of :class:`Distillation`. Default: soft targets,
            ``tau=1``, ``alpha=0.9``.
        **kwargs: As those of ``EncoderDecoder``.

    Raises:
        ConfigError: If the decode head computes its loss from something else
            than logits of pixels.

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
                'from something else than the logits of all pixels, which a '
                "teacher's could be compared with"
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
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            inputs: Images ``(N, C, H, W)``, normalised.
            data_samples: Their labels.

        Returns:
            The losses of the decode head times ``1 - alpha``,
            ``loss_distill`` times ``alpha``, and those of auxiliary heads.

        Raises:
            ConfigError: If teacher and student do not go together.
        """
        # First, so that what it needs of memory is free again.
        targets = self.teacher(inputs)
        feats = self.extract_feat(inputs)
        head = self.decode_head
        logits = head.forward(feats)
        if not isinstance(logits, Tensor):
            raise ConfigError(
                f'the student has a {type(head).__name__}, which gives more '
                'than one rating (N, classes, H, W) in training; a teacher '
                'needs one to compare with'
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
        # The label in the middle of what a logit stands for.
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
