"""Focal losses."""

import math
from types import ModuleType

import pytest
import torch
from formulas import EMPTY, indices, uniform
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mmefficientmod.ops import kernels


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_sigmoid_focal_loss_agrees_with_formula(
    mmcv_ops: ModuleType, gamma: float, weighted: bool
) -> None:
    x, classes = uniform(4, 3, low=-4, high=4), 3
    # Without class weights a target of 3 is the background.
    target = torch.tensor([0, 2, 1, 2 if weighted else 3])
    weight = uniform(3) if weighted else None
    expected = torch.zeros_like(x)
    for n, c in indices(4, classes):
        p = 1 / (1 + math.exp(-float(x[n, c])))
        if target[n] == c:
            loss = -0.25 * (1 - p) ** gamma * math.log(p)
        else:
            loss = -0.75 * p**gamma * math.log(1 - p)
        expected[n, c] = loss * (weight[target[n]] if weighted else 1)
    apply = mmcv_ops.sigmoid_focal_loss
    assert_close(apply(x, target, gamma, 0.25, weight, 'none'), expected)
    mean = mmcv_ops.SigmoidFocalLoss(gamma, 0.25, weight)
    assert_close(mean(x, target), expected.sum() / 4)
    x.requires_grad_()
    for reduction in ('none', 'sum', 'mean'):

        def loss(x: Tensor, reduction: str = reduction) -> Tensor:
            return apply(x, target, gamma, 0.25, weight, reduction)

        assert gradcheck(loss, x)


def test_sigmoid_focal_loss_of_large_logits_is_finite() -> None:
    x, target = torch.tensor([[200.0, -200.0]]), torch.tensor([1])
    output, grad = torch.zeros(1, 2), torch.zeros(1, 2)
    kernels.sigmoid_focal_loss_forward(x, target, EMPTY, output, 2.0, 0.25)
    kernels.sigmoid_focal_loss_backward(x, target, EMPTY, grad, 2.0, 0.25)
    least = -math.log(torch.finfo(torch.float32).tiny)
    assert_close(output, torch.tensor([[0.75 * least, 0.25 * least]]))
    assert_close(grad, torch.tensor([[0.75, -0.25]]))


@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss_agrees_with_formula(
    mmcv_ops: ModuleType, weighted: bool
) -> None:
    x, target = uniform(4, 3, low=-4, high=4), torch.tensor([0, 2, -1, 1])
    weight = uniform(3) if weighted else None
    expected = []
    for row, label in zip(x.tolist(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        factor = float(weight[label]) if weighted else 1
        loss = -0.25 * (1 - p) ** 2 * math.log(p) * factor
        expected.append(loss if label >= 0 else 0)
    apply = mmcv_ops.softmax_focal_loss
    ours = apply(x, target, 2.0, 0.25, weight, 'none')
    assert_close(ours, torch.tensor(expected, dtype=torch.float64))
    x.requires_grad_()
    assert gradcheck(lambda x: apply(x, target, 2.0, 0.25, weight, 'sum'), x)


def test_no_scores_give_zero_loss(mmcv_ops: ModuleType) -> None:
    scores = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = mmcv_ops.sigmoid_focal_loss(scores, target, 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == 0


def focal(scores: Tensor, target: Tensor, weight: Tensor) -> None:
    output = torch.zeros_like(scores)
    kernels.sigmoid_focal_loss_forward(scores, target, weight, output, 2, 0.25)


TARGET = torch.tensor([0, 5])
WRONG = {
    'sigmoid_focal_loss: needs': lambda: focal(
        torch.zeros(3, 2), TARGET, EMPTY
    ),
    'sigmoid_focal_loss: target must be int64': lambda: focal(
        torch.zeros(2, 2), TARGET.int(), EMPTY
    ),
    'sigmoid_focal_loss: 3 class weights': lambda: focal(
        torch.zeros(2, 2), TARGET, torch.ones(3)
    ),
    'sigmoid_focal_loss: .*every target': lambda: focal(
        torch.zeros(2, 2), TARGET, torch.ones(2)
    ),
    'softmax_focal_loss: target 5': lambda: kernels.softmax_focal_loss_forward(
        torch.zeros(2, 2), TARGET, EMPTY, torch.zeros(2), 2.0, 0.25
    ),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
