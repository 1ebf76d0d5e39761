"""Deformable convolution, without and with modulation (v1 and v2)."""

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor

from .common import check, same_float


class _Conv(NamedTuple):
    """Settings of a deformable convolution; pairs are (y, x)."""

    op: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    def check(
        self,
        input: Tensor,
        weight_shape: torch.Size,
        offset: Tensor,
        mask: Tensor | None,
        output: Tensor,
    ) -> None:
        """Raise ValueError if the shapes do not fit."""
        check(
            input.dim() == 4,
            self.op,
            f'input must be (N, C, H, W), got {tuple(input.shape)}',
        )
        batch, channels = input.shape[:2]
        check(
            channels % self.groups == 0 and channels % self.offset_groups == 0,
            self.op,
            f'{channels} channels are not divisible by {self.groups} groups '
            f'and {self.offset_groups} deformable groups',
        )
        outputs = weight_shape[0]
        expected = (outputs, channels // self.groups, *self.kernel)
        check(
            weight_shape == expected and outputs % self.groups == 0,
            self.op,
            f'weight must be (multiple of {self.groups}, *{expected[1:]}) '
            f'for an input of {channels} channels in {self.groups} groups, '
            f'got {tuple(weight_shape)}',
        )
        size = self.out_size(input)
        taps = self.offset_groups * self.kernel[0] * self.kernel[1]
        shapes = [
            ('offset', offset, 2 * taps),
            ('mask', mask, taps),
            ('output', output, outputs),
        ]
        for name, tensor, width in shapes:
            if tensor is None:
                continue
            check(
                tensor.shape == (batch, width, *size),
                self.op,
                f'{name} must be {(batch, width, *size)} for an input of '
                f'{tuple(input.shape)}, got {tuple(tensor.shape)}',
            )

    def out_size(self, input: Tensor) -> tuple[int, ...]:
        """Height and width of the output."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                input.shape[2:],
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )
        )

    def as_read(self, tensor: Tensor, input: Tensor) -> Tensor:
        """Offset or mask as the compiled modulated kernel reads it.

        DyHead passes the offsets of a larger map. The compiled kernel does not
        check their size and reads the first values in memory as those of its
        output. Weights were trained with this, so it is reproduced here.
        """
        width, size = tensor.shape[1], self.out_size(input)
        wanted = width * size[0] * size[1]
        if tensor[0].numel() <= wanted or input.dim() != 4:
            return tensor
        return tensor.flatten(1)[:, :wanted].reshape(-1, width, *size)

    def on_border(self, offset: Tensor) -> Tensor:
        """Whether each tap is one pixel or more above or left of the image.

        Returns:
            Tensor: bool, with the shape of ``offset``.
        """
        batch, _, *size = offset.shape
        # (N, groups, kernel y, kernel x, y or x, output y, output x)
        taps = offset.reshape(batch, -1, *self.kernel, 2, *size)
        outside = torch.zeros_like(taps[:, :, :, :, 0], dtype=torch.bool)
        for axis in (0, 1):
            start = torch.arange(size[axis], device=offset.device)
            start = start * self.stride[axis] - self.padding[axis]
            step = torch.arange(self.kernel[axis], device=offset.device)
            grid = start + step[:, None] * self.dilation[axis]
            shape = [1] * outside.dim()
            shape[2 + axis], shape[4 + axis] = grid.shape
            outside |= grid.view(shape) + taps[:, :, :, :, axis] <= -1
        return outside.unsqueeze(4).expand_as(taps).reshape(offset.shape)

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        output: Tensor,
    ) -> None:
        """Write the convolution of ``input`` into ``output``."""
        if mask is not None:
            offset = self.as_read(offset, input)
            mask = self.as_read(mask, input)
        self.check(input, weight.shape, offset, mask, output)
        if output.numel() == 0:
            return
        given = [t for t in (mask, bias) if t is not None]
        input, weight, offset, *given = same_float(
            self.op, input, weight, offset, *given
        )
        output.copy_(
            torchvision.ops.deform_conv2d(
                input,
                offset,
                weight,
                bias=None if bias is None else given[-1],
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=None if mask is None else given[0],
            )
        )

    def backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the gradients of input, weight, offset, mask and bias.

        Gradients of offset and mask have the shapes that ``as_read`` gives.
        """
        if mask is not None:
            offset = self.as_read(offset, input)
            mask = self.as_read(mask, input)
        self.check(input, weight.shape, offset, mask, grad_output)
        # torchvision needs tensors for a missing mask and bias.
        bias = weight.new_empty(len(weight))
        no_mask = input.new_empty(len(input), 0)
        names = ('input', 'weight', 'offset', 'mask', 'bias')
        tensors = same_float(
            self.op,
            input,
            weight,
            offset,
            no_mask if mask is None else mask,
            bias,
            grad_output,
        )
        if grad_output.numel() == 0:
            return dict(
                zip(names, map(torch.zeros_like, tensors[:5]), strict=True)
            )
        grads = torch.ops.torchvision._deform_conv2d_backward(
            tensors[-1],
            *tensors[:-1],
            *self.stride,
            *self.padding,
            *self.dilation,
            self.groups,
            self.offset_groups,
            mask is not None,
        )
        grads = dict(zip(names, grads, strict=True))
        # The output is not differentiable where a tap is exactly one pixel
        # outside, which is frequent in new layers with padding, whose offsets
        # are 0. There mmcv's gradient is 0, torchvision's the slope towards
        # the image.
        grads['offset'].masked_fill_(self.on_border(tensors[2]), 0)
        return grads


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(O, C / group, kH, kW)``.
        offset (Tensor): ``(N, deformable_group * kH * kW * 2, H', W')``, in
            pixels of ``input``, y before x.
        output (Tensor): Result, ``(N, O, H', W')``.
        columns (Tensor): Not used.
        ones (Tensor): Not used.
        kW (int): Width of the kernel.
        kH (int): Height of the kernel.
        dW (int): Stride along x.
        dH (int): Stride along y.
        padW (int): Padding along x.
        padH (int): Padding along y.
        dilationW (int): Dilation along x.
        dilationH (int): Dilation along y.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share offsets.
        im2col_step (int): Not used.
    """
    _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).forward(input, weight, offset, None, None, output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of :func:`deform_conv_forward`.

    Args:
        gradOutput (Tensor): ``(N, O, H', W')``.
        gradInput (Tensor): The gradient is added to it; shape of ``input``.
        gradOffset (Tensor): Result; shape of ``offset``.

    The other arguments are those of the forward pass.
    """
    grads = _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).backward(gradOutput, input, weight, offset, None)
    gradInput += grads['input']
    gradOffset.copy_(grads['offset'])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` for its weight.

    Args:
        gradOutput (Tensor): ``(N, O, H', W')``.
        gradWeight (Tensor): ``scale`` times the gradient is added to it,
            ``(O, C / group, kH, kW)``.
        scale (float): Factor of the gradient.

    The other arguments are those of the forward pass.
    """
    # The gradient of the weight does not depend on the weight itself.
    grads = _Conv(
        'deform_conv',
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    ).backward(gradOutput, input, gradWeight, offset, None)
    gradWeight.add_(grads['weight'], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution.

    Args:
        input (Tensor): ``(N, C, H, W)``.
        weight (Tensor): ``(O, C / group, kernel_h, kernel_w)``.
        bias (Tensor): ``(O,)``; read if ``with_bias``.
        ones (Tensor): Not used.
        offset (Tensor): ``(N, deformable_group * kernel_h * kernel_w * 2,
            H', W')``, in pixels of ``input``, y before x.
        mask (Tensor): ``(N, deformable_group * kernel_h * kernel_w, H',
            W')``, factors.
        output (Tensor): Result, ``(N, O, H', W')``.
        columns (Tensor): Not used.
        kernel_h (int): Height of the kernel.
        kernel_w (int): Width of the kernel.
        stride_h (int): Stride along y.
        stride_w (int): Stride along x.
        pad_h (int): Padding along y.
        pad_w (int): Padding along x.
        dilation_h (int): Dilation along y.
        dilation_w (int): Dilation along x.
        group (int): Groups of channels.
        deformable_group (int): Groups of channels that share offsets.
        with_bias (bool): Add the bias.
    """
    _Conv(
        'modulated_deform_conv',
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    ).forward(input, weight, offset, mask, bias if with_bias else None, output)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`.

    Args:
        grad_input (Tensor): The gradient is added to it; shape of ``input``.
        grad_weight (Tensor): Likewise; shape of ``weight``.
        grad_bias (Tensor): Likewise if ``with_bias``; shape of ``bias``.
        grad_offset (Tensor): Result; shape of ``offset``.
        grad_mask (Tensor): Result; shape of ``mask``.
        grad_output (Tensor): ``(N, O, H', W')``.

    The other arguments are those of the forward pass.
    """
    grads = _Conv(
        'modulated_deform_conv',
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    ).backward(grad_output, input, weight, offset, mask)
    grad_input += grads['input']
    grad_weight += grads['weight']
    for result, grad in (
        (grad_offset, grads['offset']),
        (grad_mask, grads['mask']),
    ):
        read = grad.flatten(1)
        result.zero_().flatten(1)[:, : read.shape[1]] = read
    if with_bias:
        grad_bias += grads['bias']
