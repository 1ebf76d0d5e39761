"""A classifier of MMPretrain that learns from a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmpretrain.models import ClsHead, ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.distill.loss import Distillation
from mmefficientmod.models.distill.teacher import Teacher
from mmefficientmod.registry import MODELS


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """MMPretrain's ``ImageClassifier``, trained with a teacher.

    Its parameters and predictions are those of the plain classifier, and
    checkpoints of one load into the other. Teacher and student get the same
    images, after Mixup and CutMix. The log has ``loss_cls`` and
    ``loss_distill``, each with its weight, and their sum ``loss``.

    Args:
        *args: Arguments of ``ImageClassifier``.
        teacher: Arguments of :class:`Teacher`. Default: DeiT's RegNetY-160.
        distill: Arguments of :class:`Distillation`. Default: soft targets,
            ``tau=1``, ``alpha=0.9``, as EfficientMod was trained.
        **kwargs: Arguments of ``ImageClassifier``.

    Raises:
        ConfigError: If the head is not a ``ClsHead``, which chooses one class.

    Example:
        A config that adds distillation to that of a plain classifier:

        >>> _base_ = 'efficientmod_s_in1k.py'
        >>> model = dict(
        ...     type='mmefficientmod.DistilledClassifier',
        ...     teacher=dict(model='timm:regnety_160.deit_in1k'),
        ...     distill=dict(mode='soft', tau=1.0, alpha=0.9),
        ... )
    """

    def __init__(
        self,
        *args: Any,
        teacher: Mapping[str, Any] | None = None,
        distill: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.head, ClsHead):
            raise ConfigError(
                f'the student has the head {type(self.head).__name__}; '
                'distillation is for heads that choose one class, which are '
                "MMPretrain's ClsHead and its subclasses"
            )
        self.distill = Distillation(**(distill or {}))
        self.teacher = Teacher(
            **(teacher or {}),
            student=self.data_preprocessor,
            num_classes=getattr(self.head, 'num_classes', None),
        )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor | list[Tensor]]:
        """The losses of a batch.

        Args:
            inputs: Images ``(N, C, H, W)``, normalised, after Mixup and
                CutMix.
            data_samples: The label of each image, or its scores ``(classes,)``
                after Mixup and CutMix.

        Returns:
            The losses of the head times ``1 - alpha``, where ``loss`` is
            renamed to ``loss_cls``, and ``loss_distill`` times ``alpha``.

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
        with _recorded_outputs(self.head) as outputs:
            losses = self.head.loss(feats, data_samples)
        logits = outputs[-1] if outputs else None
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ConfigError(
                f'the student has a {type(self.head).__name__}, which gives '
                'no single tensor of logits (N, classes) to compare with the '
                "teacher's"
            )
        return self.distill.mix(losses, self.distill(logits, targets))


@contextmanager
def _recorded_outputs(module: nn.Module) -> Iterator[list[Any]]:
    """The outputs of all calls of a module inside of the block.

    A head computes its logits inside of ``loss``. A second call for the
    logits would draw another dropout mask.
    """
    outputs: list[Any] = []
    handle = module.register_forward_hook(
        lambda module, args, out: outputs.append(out)
    )
    try:
        yield outputs
    finally:
        handle.remove()
