"""Multi-scale deformable attention."""

from types import ModuleType

import pytest
import torch
from formulas import between_pixels, bilinear, indices, uniform
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mmefficientmod.ops import kernels

SHAPES = torch.tensor([[3, 4], [2, 2]])
STARTS = torch.tensor([0, 12])


def attention_tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations off the pixel grid, and weights, for SHAPES."""
    locations = between_pixels(1, 3, 2, 2, 2, 2) + 1
    sizes = SHAPES.flip(1).view(1, 1, 1, 2, 1, 2)
    return (
        uniform(1, 16, 2, 3),
        (locations + 0.5) / sizes,
        uniform(1, 3, 2, 2, 2),
    )


def test_ms_deform_attn_agrees_with_formula() -> None:
    value, locations, weights = attention_tensors()
    expected = value.new_zeros(1, 3, 2, 3)
    for q, m, d, level, p in indices(3, 2, 3, 2, 2):
        height, width = SHAPES[level].tolist()
        start = int(STARTS[level])
        image = value[0, start : start + height * width, m, d]
        at_x, at_y = locations[0, q, m, level, p].tolist()
        expected[0, q, m, d] += float(weights[0, q, m, level, p]) * bilinear(
            image.view(height, width).tolist(),
            at_y * height - 0.5,
            at_x * width - 0.5,
        )
    ours = kernels.ms_deform_attn_forward(
        value, SHAPES, STARTS, locations, weights, im2col_step=64
    )
    assert_close(ours, expected.flatten(2))


def test_agrees_with_the_pytorch_function_of_mmcv() -> None:
    module = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
    value, locations, weights = attention_tensors()
    expected = module.multi_scale_deformable_attn_pytorch(
        value, SHAPES, locations, weights
    )
    ours = kernels.ms_deform_attn_forward(
        value, SHAPES, STARTS, locations, weights, im2col_step=64
    )
    assert_close(ours, expected)


def test_ms_deform_attn_gradient_passes_gradcheck(
    mmcv_ops: ModuleType,
) -> None:
    module = mmcv_ops.multi_scale_deform_attn
    inputs = [t.requires_grad_() for t in attention_tensors()]

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return module.MultiScaleDeformableAttnFunction.apply(
            value, SHAPES, STARTS, locations, weights, 64
        )

    assert gradcheck(attend, inputs)


@pytest.mark.parametrize(('batch', 'queries'), [(1, 0), (0, 3)])
def test_no_queries_or_images_give_empty_results(
    batch: int, queries: int
) -> None:
    value, locations, weights = attention_tensors()
    output = kernels.ms_deform_attn_forward(
        value[:batch],
        SHAPES,
        STARTS,
        locations[:batch, :queries],
        weights[:batch, :queries],
        64,
    )
    assert output.shape == (batch, queries, 6)


IMAGE = torch.zeros(1, 2, 4, 4)
WRONG = {
    'ms_deform_attn: needs': lambda: kernels.ms_deform_attn_forward(
        IMAGE, SHAPES, STARTS, IMAGE, IMAGE, 64
    ),
    'ms_deform_attn: levels': lambda: kernels.ms_deform_attn_forward(
        torch.zeros(1, 15, 2, 3),
        SHAPES,
        STARTS,
        torch.zeros(1, 3, 2, 2, 2, 2),
        torch.zeros(1, 3, 2, 2, 2),
        64,
    ),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
