"""The loss of knowledge distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mmefficientmod.config.nodes import ConfigError

MODES = ('soft', 'hard')


@dataclass(frozen=True)
class Distillation:
    """The loss of knowledge distillation, and its weight.

    The whole loss is ``(1 - alpha) * base + alpha * distill``, where ``base``
    is the loss for the labels. In the mode ``'soft'`` (Hinton et al., arXiv
    1503.02531), ``distill`` is
    ``tau**2 * KL(softmax(teacher / tau) || softmax(student / tau))``. In the
    mode ``'hard'`` (DeiT, arXiv 2012.12877), it is the cross-entropy between
    the student's logits and the teacher's most likely class. The defaults are
    those that EfficientMod was trained with.

    Args:
        mode: ``'soft'`` or ``'hard'``. Default: ``'soft'``.
        tau: Temperature of the soft targets. Default: 1.
        alpha: Weight of the teacher, 0 to 1. Default: 0.9.

    Raises:
        ValueError: If a value is out of its range.
    """

    mode: str = 'soft'
    tau: float = 1.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(
                f'distill has mode={self.mode!r}; the modes are '
                f'{" and ".join(MODES)}'
            )
        if not self.tau > 0:
            raise ValueError(f'distill has tau={self.tau}; it must be above 0')
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f'distill has alpha={self.alpha}; it must be from 0 to 1'
            )

    def __call__(
        self, student: Tensor, teacher: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """The loss ``distill``, without the factor ``alpha``.

        Args:
            student: Logits, ``(N, C)`` or ``(N, C, H, W)``.
            teacher: Logits of the same shape.
            valid: A mask of the images ``(N,)`` or pixels ``(N, H, W)`` that
                count. Default: all.

        Returns:
            The mean over images or pixels that count, a scalar in float32; 0
            if none counts.

        Raises:
            ConfigError: If the numbers of classes differ, or there is only
                one class.
        """
        ours, theirs = student.shape[1], teacher.shape[1]
        if ours != theirs:
            raise ConfigError(
                f'the teacher has {theirs} classes and the student {ours}; '
                'distillation needs the same ones, in the same order'
            )
        if ours < 2:
            raise ConfigError(
                'distillation compares classes, and there is only one; give '
                'the student one output for each class, even for two classes'
            )
        # Small probabilities need more than half precision.
        student, teacher = student.float(), teacher.float()
        if self.mode == 'soft':
            each = F.kl_div(
                F.log_softmax(student / self.tau, dim=1),
                F.log_softmax(teacher / self.tau, dim=1),
                reduction='none',
                log_target=True,
            ).sum(1)
            each = each * self.tau**2
        else:
            each = F.cross_entropy(
                student, teacher.argmax(1), reduction='none'
            )
        if valid is None:
            return each.mean()
        return each.where(valid, 0).sum() / valid.sum().clamp(min=1)

    def mix(
        self, base: Mapping[str, Tensor | list[Tensor]], distill: Tensor
    ) -> dict[str, Tensor | list[Tensor]]:
        """Weight the losses of a head and add that of the distillation.

        Args:
            base: Losses, with ``loss`` in their names, and other values that
                a head returns.
            distill: The result of the call, a scalar.

        Returns:
            The losses times ``1 - alpha``, ``loss_distill`` times ``alpha``,
            and the other values unchanged. ``loss`` is renamed to
            ``loss_cls``, since MMEngine logs the sum as ``loss``.
        """
        mixed = {}
        for name, value in base.items():
            if 'loss' in name:
                name = 'loss_cls' if name == 'loss' else name
                value = _times(value, 1 - self.alpha)
            mixed[name] = value
        mixed['loss_distill'] = self.alpha * distill
        return mixed


def _times(value: Tensor | list[Tensor], weight: float) -> Tensor | list:
    if isinstance(value, list):
        return [_times(v, weight) for v in value]
    return value * weight
