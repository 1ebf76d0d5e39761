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

    It has the parameters, names and results of the plain classifier, so that
    checkpoints go from one to the other. Mixup and cutmix are done before,
    so that teacher and student see the same images. The log has ``loss_cls``,
    ``loss_distill`` and their sum ``loss``, weighted as they are learned from.

    Args:
        *args: As those of ``ImageClassifier``.
        teacher: Arguments of :class:`Teacher`. Default: DeiT's RegNetY-160.
        distill: Arguments of :class:`Distillation`. Default: soft targets,
            ``tau=1``, ``alpha=0.9``, as EfficientMod was trained.
        **kwargs: As those of ``ImageClassifier``.

    Raises:
        ConfigError: If the head does not choose one class among others.

    Example:
        A config of a plain classifier becomes one that is distilled:

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
                'distillation is for heads that choose one class among '
                "others, which are MMPretrain's ClsHead and its heirs"
            )
        self.distill = Distillation(**(distill or {}))
        self.teacher = Teacher(
            **(teacher or {}),
            student=self.data_preprocessor,
            num_classes=getattr(self.head, 'num_classes', None),
        )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            inputs: Images ``(N, C, H, W)``, normalised and mixed.
            data_samples: Their labels, or mixed scores.

        Returns:
            The head's losses times ``1 - alpha``, of which ``loss`` is called
            ``loss_cls``, and ``loss_distill`` times ``alpha``.

        Raises:
            ConfigError: If teacher and student do not go together.
        """
        # First, so that what it needs of memory is free again.
        targets = self.teacher(inputs)
        feats = self.extract_feat(inputs)
        with _outputs(self.head) as outputs:
            losses = self.head.loss(feats, data_samples)
        logits = outputs[-1] if outputs else None
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ConfigError(
                f'the student has a {type(self.head).__name__}, which gives '
                'no single rating (N, classes) that could be compared with '
                "the teacher's"
            )
        return self.distill.mix(losses, self.distill(logits, targets))


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[Any]]:
    """What a module returns meanwhile.

    A head computes its logits inside of its loss. To ask for them once more
    would draw its dropout anew.
    """
    outputs: list[Any] = []
    handle = module.register_forward_hook(
        lambda module, args, out: outputs.append(out)
    )
    try:
        yield outputs
    finally:
        handle.remove()
