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
    """How much, and in which way, a student follows its teacher.

    ``(1 - alpha) * base + alpha * distill``, where base is the loss against
    the labels. Soft (Hinton et al., arXiv 1503.02531): ``distill`` is
    ``tau**2 * KL(softmax(teacher / tau) || softmax(student / tau))``. Hard
    (DeiT, arXiv 2012.12877): the cross-entropy with the teacher's class.
    The defaults are what EfficientMod was trained with.

    Args:
        mode: ``'soft'`` or ``'hard'``. Default: ``'soft'``.
        tau: Temperature of the soft targets. Default: 1.
        alpha: Weight of the teacher, 0 to 1. Default: 0.9.

    Raises:
        ValueError: If one of them is none of these.
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
        """The distance of a student from its teacher, without ``alpha``.

        Args:
            student: Logits, ``(N, C)`` or ``(N, C, H, W)``.
            teacher: Logits of the same shape.
            valid: Which images, ``(N,)``, or pixels, ``(N, H, W)``, count.
                Default: all.

        Returns:
            The mean over what counts, a scalar in float32; 0 if nothing
            does.

        Raises:
            ConfigError: If the classes are not as many, or only one.
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
                'the student an output for each, also of two'
            )
        # Half precision is too coarse for small probabilities.
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
        """What a head returns, and the distillation, each with its weight.

        Args:
            base: What the head returned; what is a loss has it in its name.
            distill: The result of the call.

        Returns:
            The same with ``loss_distill``. A loss that is called ``loss`` is
            now ``loss_cls``, since the log has the sum under that name.
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
