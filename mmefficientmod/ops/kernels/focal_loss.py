"""Focal losses."""

import torch
from torch import Tensor

from .common import check, same_float

# mmcv clamps probabilities to at least C's FLT_MIN before the logarithm.
_TINY = torch.finfo(torch.float32).tiny


def _check_focal(
    op: str, scores: Tensor, target: Tensor, weight: Tensor
) -> None:
    check(
        scores.dim() == 2 and target.shape == scores.shape[:1],
        op,
        'needs scores (N, C) and targets (N,), got '
        f'{tuple(scores.shape)} and {tuple(target.shape)}',
    )
    if target.dtype != torch.int64:
        raise TypeError(f'{op}: target must be int64, got {target.dtype}')
    check(
        weight.numel() in (0, scores.shape[1]),
        op,
        f'{weight.numel()} class weights for {scores.shape[1]} classes',
    )


def _class_weight(op: str, weight: Tensor, target: Tensor) -> Tensor | float:
    """Weight of each target, ``(N, 1)``; 1 if there are no weights."""
    if weight.numel() == 0:
        return 1.0
    if len(target):
        low, high = target.aminmax()
        check(
            low >= 0 and high < len(weight),
            op,
            f'with class weights every target must be a class, 0 to '
            f'{len(weight) - 1}, got {int(low)} to {int(high)}',
        )
    return weight[target][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of a sigmoid for each class (arXiv 1708.02002, eq. 5).

    Args:
        input (Tensor): Logits, ``(N, C)``.
        target (Tensor): Class of each row, ``(N,)``, int64. Any number
            outside 0 to C - 1 is background.
        weight (Tensor): Weight of each class, ``(C,)``, or empty.
        output (Tensor): Result, ``(N, C)``.
        gamma (float): Focusing parameter: a higher one lowers the loss of
            easy examples more.
        alpha (float): Weight of positives; the weight of negatives is
            1 - alpha.
    """
    op = 'sigmoid_focal_loss'
    _check_focal(op, input, target, weight)
    input, weight = same_float(op, input, weight)
    p = input.sigmoid()
    q = 1 - p
    classes = torch.arange(input.shape[1], device=input.device)
    loss = torch.where(
        target[:, None] == classes,
        -alpha * q**gamma * p.clamp(min=_TINY).log(),
        (alpha - 1) * p**gamma * q.clamp(min=_TINY).log(),
    )
    output.copy_(loss * _class_weight(op, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`sigmoid_focal_loss_forward`.

    Args:
        grad_input (Tensor): Result, ``(N, C)``.

    The other arguments are those of the forward pass.
    """
    op = 'sigmoid_focal_loss'
    _check_focal(op, input, target, weight)
    input, weight = same_float(op, input, weight)
    p = input.sigmoid()
    q = 1 - p
    log_p = p.clamp(min=_TINY).log()
    log_q = q.clamp(min=_TINY).log()
    classes = torch.arange(input.shape[1], device=input.device)
    grad = torch.where(
        target[:, None] == classes,
        -alpha * q**gamma * (q - gamma * p * log_p),
        (alpha - 1) * p**gamma * (gamma * q * log_q - p),
    )
    grad_input.copy_(grad * _class_weight(op, weight, target))


def _softmax_focal_terms(
    softmax: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax, and the probability and weight of each row's target.

    The weight of an ignored target is 0.
    """
    op = 'softmax_focal_loss'
    _check_focal(op, softmax, target, weight)
    softmax, weight = same_float(op, softmax, weight)
    if target.is_cpu and len(target):
        check(
            int(target.max()) < softmax.shape[1],
            op,
            f'target {int(target.max())} is no class; they are 0 to '
            f'{softmax.shape[1] - 1}',
        )
    label = target.clamp(min=0)
    p = softmax.gather(1, label[:, None])[:, 0]
    factor = weight[label] if weight.numel() else torch.ones_like(p)
    return softmax, p, factor.masked_fill(target < 0, 0)


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss of a softmax.

    Args:
        input (Tensor): Probabilities (not logits), ``(N, C)``.
        target (Tensor): Class of each row, ``(N,)``, int64. Rows with a
            negative one are ignored.
        weight (Tensor): Weight of each class, ``(C,)``, or empty.
        output (Tensor): Result, ``(N,)``.
        gamma (float): Focusing parameter: a higher one lowers the loss of
            easy examples more.
        alpha (float): Factor of the loss.
    """
    _, p, factor = _softmax_focal_terms(input, target, weight)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    output.copy_(loss * factor)


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`softmax_focal_loss_forward` for the logits.

    Args:
        buff (Tensor): Result, ``(N,)``: the factor common to all classes.
        grad_input (Tensor): Result, ``(N, C)``.

    The other arguments are those of the forward pass.
    """
    softmax, p, factor = _softmax_focal_terms(input, target, weight)
    q = 1 - p
    slope = gamma * q ** (gamma - 1) * p * p.clamp(min=_TINY).log()
    common = alpha * (slope - q**gamma) * factor
    buff.copy_(common)
    classes = torch.arange(softmax.shape[1], device=softmax.device)
    hit = (target[:, None] == classes).to(softmax.dtype)
    grad_input.copy_(common[:, None] * (hit - softmax))
