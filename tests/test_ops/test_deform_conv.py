"""Deformable convolution, version 1 and 2 (modulated)."""

from types import ModuleType

import pytest
import torch
from formulas import EMPTY, between_pixels, bilinear, indices, uniform
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mmefficientmod.ops import kernels

# Of deform_conv with a kernel of 3 x 2.
DEFORM = {
    'kW': 2,
    'kH': 3,
    'dW': 1,
    'dH': 2,
    'padW': 1,
    'padH': 0,
    'dilationW': 2,
    'dilationH': 1,
    'group': 2,
    'deformable_group': 2,
    'im2col_step': 1,
}
CONVS = [
    # stride, padding, dilation, groups, deformable groups
    ((1, 1), (0, 0), (1, 1), 1, 1),
    ((2, 1), (1, 0), (1, 2), 2, 1),
    ((1, 2), (0, 1), (2, 1), 1, 2),
    ((2, 2), (1, 1), (1, 1), 4, 4),
]


def naive_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    offset_groups: int,
) -> Tensor:
    images, weights = x.tolist(), weight.tolist()
    batch, channels = x.shape[:2]
    outputs, per_group, *kernel = weight.shape
    height, width = offset.shape[2:]
    result = x.new_zeros(batch, outputs, height, width)
    for n, o, h, w in indices(*result.shape):
        total = 0.0
        for c, i, j in indices(per_group, *kernel):
            channel = o // (outputs // groups) * per_group + c
            tap = channel // (channels // offset_groups) * kernel[0]
            tap = (tap + i) * kernel[1] + j
            dy, dx = offset[n, 2 * tap : 2 * tap + 2, h, w].tolist()
            y = h * stride[0] - padding[0] + i * dilation[0] + dy
            z = w * stride[1] - padding[1] + j * dilation[1] + dx
            factor = 1.0 if mask is None else float(mask[n, tap, h, w])
            value = bilinear(images[n][channel], y, z)
            total += weights[o][c][i][j] * factor * value
        result[n, o, h, w] = total
    return result


def conv_tensors(
    stride: tuple, padding: tuple, dilation: tuple, groups: int, deform: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, offset and mask of a kernel of 3 x 2."""
    x = uniform(2, 4, 5, 4, low=-1)
    weight = uniform(4, 4 // groups, 3, 2, low=-1)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            (5, 4), (3, 2), stride, padding, dilation, strict=True
        )
    ]
    offset = between_pixels(2, deform * 12, *size)
    return x, weight, offset, uniform(2, deform * 6, *size)


@pytest.mark.parametrize('conv', CONVS)
def test_deform_conv_agrees_with_formula(
    mmcv_ops: ModuleType, conv: tuple
) -> None:
    x, weight, offset, _ = conv_tensors(*conv)
    apply = mmcv_ops.deform_conv2d
    output = apply(x, offset, weight, *conv)
    assert_close(output, naive_conv(x, weight, offset, None, *conv))
    # One image at a time is the same as all at once.
    assert_close(apply(x, offset, weight, *conv, False, 1), output)
    inputs = [t.requires_grad_() for t in (x[:1], offset[:1], weight)]
    assert gradcheck(lambda *t: apply(*t, *conv), inputs)


@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('conv', CONVS)
def test_modulated_deform_conv_agrees_with_formula(
    mmcv_ops: ModuleType, conv: tuple, with_bias: bool
) -> None:
    x, weight, offset, mask = conv_tensors(*conv)
    bias = uniform(4) if with_bias else None
    apply = mmcv_ops.modulated_deform_conv2d
    expected = naive_conv(x, weight, offset, mask, *conv)
    if with_bias:
        expected = expected + bias[:, None, None]
    assert_close(apply(x, offset, mask, weight, bias, *conv), expected)
    inputs = [t.requires_grad_() for t in (x[:1], offset[:1], mask[:1])]
    inputs += [weight.requires_grad_(), bias]
    if with_bias:
        bias.requires_grad_()
    assert gradcheck(lambda *t: apply(*t, *conv), inputs)


def test_modulated_deform_conv_reads_the_beginning_of_larger_offsets(
    mmcv_ops: ModuleType,
) -> None:
    # DyHead gives a level the offsets of the finer level below it.
    conv = ((1, 1), (1, 1), (1, 1), 1, 1)
    x, weight = uniform(2, 2, 3, 2, low=-1), uniform(2, 2, 3, 3, low=-1)
    offset, mask = between_pixels(2, 18, 6, 4), uniform(2, 9, 6, 4)
    read = [t.flatten(1)[:, : t.shape[1] * 6] for t in (offset, mask)]
    read = [t.reshape(2, -1, 3, 2) for t in read]

    def apply(offset: Tensor, mask: Tensor) -> Tensor:
        return mmcv_ops.modulated_deform_conv2d(
            x, offset, mask, weight, None, *conv
        )

    assert_close(apply(offset, mask), naive_conv(x, weight, *read, *conv))
    inputs = [t[:1].requires_grad_() for t in (offset, mask)]
    x = x[:1]
    assert gradcheck(apply, inputs)
    with pytest.raises(ValueError, match='offset must be'):
        apply(offset[:1, :, :1], mask[:1])


def test_gradient_of_deform_conv_is_added_and_scaled() -> None:
    x, weight, offset, _ = conv_tensors((2, 1), (0, 1), (1, 2), 2, 2)
    grad_output = uniform(2, 4, 2, 4)
    grads = [torch.zeros_like(weight), torch.ones_like(weight)]
    for scale, grad in zip((1, 3), grads, strict=True):
        kernels.deform_conv_backward_parameters(
            x, offset, grad_output, grad, EMPTY, EMPTY, scale=scale, **DEFORM
        )
    assert_close(grads[1], 1 + 3 * grads[0])


def test_offsets_of_taps_one_pixel_outside_have_no_gradient() -> None:
    x, weight = uniform(1, 1, 4, 4, low=1, high=2), uniform(1, 1, 3, 3, low=1)
    offset, grads = x.new_zeros(1, 18, 4, 4), x.new_ones(1, 18, 4, 4)
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3}
    kernels.deform_conv_backward_input(
        x,
        offset,
        torch.ones_like(x),
        torch.zeros_like(x),
        grads,
        weight,
        EMPTY,
        **options,
    )
    grads = grads.view(3, 3, 2, 4, 4)
    # Kernel row 0 at output row 0 reads row -1 of the image, and kernel column
    # 0 at output column 0 reads column -1.
    assert not grads[0, :, :, 0, :].any()
    assert not grads[:, 0, :, :, 0].any()
    assert grads[1:, 1:, :, :3, :3].all()
    assert grads[0, 1:, :, 1:3, :3].all()


def test_deformable_layers_start_as_convolutions(mmcv_ops: ModuleType) -> None:
    x = uniform(2, 4, 6, 5).float()
    plain = mmcv_ops.DeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    expected = torch.nn.functional.conv2d(x, plain.weight, padding=1)
    assert_close(plain(x), expected)
    layer = mmcv_ops.ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=1)
    expected = torch.nn.functional.conv2d(
        x, layer.weight * 0.5, layer.bias, stride=2, padding=1
    )
    assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.conv_offset.weight.grad.any()


def test_no_images_give_empty_results() -> None:
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3}
    x, offset = torch.zeros(0, 2, 4, 4), torch.zeros(0, 18, 4, 4)
    weight, output = torch.ones(3, 2, 3, 3), torch.zeros(0, 3, 4, 4)
    kernels.deform_conv_forward(
        x, weight, offset, output, EMPTY, EMPTY, **options
    )
    grad = torch.zeros_like(weight)
    kernels.deform_conv_backward_parameters(
        x, offset, output, grad, EMPTY, EMPTY, scale=1, **options
    )
    assert not grad.any()


def deform(changed: dict, offset_channels: int = 18) -> None:
    options = dict.fromkeys(DEFORM, 1) | {'kW': 3, 'kH': 3} | changed
    offset = torch.zeros(1, offset_channels, 4, 4)
    weight, output = torch.zeros(2, 2, 3, 3), torch.zeros(1, 2, 4, 4)
    kernels.deform_conv_forward(
        torch.zeros(1, 2, 4, 4),
        weight,
        offset,
        output,
        EMPTY,
        EMPTY,
        **options,
    )


WRONG = {
    'deform_conv: offset': lambda: deform({}, offset_channels=9),
    'deform_conv: weight': lambda: deform({'kW': 2}),
    'deform_conv: 2 channels': lambda: deform({'group': 3}),
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_input_is_refused(message: str) -> None:
    with pytest.raises(
        (ValueError, TypeError, NotImplementedError), match=message
    ):
        WRONG[message]()
