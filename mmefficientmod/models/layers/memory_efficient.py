"""Layers with backward passes of their own, for less memory and time.

For its backward pass a linear layer keeps its input. Here that input is cheap
to make: a LayerNorm, a GELU or a product of tensors that are needed anyway.
These functions keep the latter alone and make the input again when its
gradient is asked for, which no matrix product is repeated for. That is the
memory of most of a block. And PyTorch's gradient of a depth-wise kernel is
slow on a CPU, where another convolution gives the same.

While the network is traced, compiled or transformed (``torch.func``), and
where no gradient is wanted, they are the plain modules one after another: a
compiler decides by itself what it makes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmefficientmod.models.layers.fast_path import (
    _has_own_backward,
    _may_overwrite,
)


def norm_linear(
    x: Tensor, norm: nn.LayerNorm, *linears: nn.Linear
) -> Sequence[Tensor]:
    """Linear layers that read the same LayerNorm; keeps ``x`` alone.

    Args:
        x: ``(..., C)``.
        norm: Over the C channels.
        linears: From C to any number of channels each.

    Returns:
        What each layer gives, ``(..., C_i)``.
    """
    if not _has_own_backward(norm, *linears):
        x = norm(x)
        return [linear(x) for linear in linears]
    params = [p for m in linears for p in (m.weight, m.bias)]
    return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, *params)


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(GELU(x))``; keeps ``x`` alone.

    Overwrites ``x`` where no gradient is wanted.

    Args:
        x: ``(..., C)``.
        linear: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not _has_own_backward(linear):
        return linear(gelu(x))
    return _ProductLinear.apply(
        x, None, linear.weight, linear.bias, None, None, True
    )


def product_linear(
    value: Tensor,
    context: Tensor,
    linear: nn.Linear,
    activate: bool,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``residual + scale * linear(context * value)``.

    Keeps value and context alone for the backward pass.

    Overwrites ``value`` where no gradient is wanted.

    Args:
        value: ``(..., rC)``: r groups of C channels.
        context: ``(..., C)``, which multiplies each group.
        linear: From rC to C_out channels.
        activate: Whether the value goes through a GELU first.
        scale: ``(C_out,)``; 1 if None.
        residual: ``(..., C_out)``; 0 if None.

    Returns:
        ``(..., C_out)``.
    """
    if value.dtype == context.dtype and _has_own_backward(linear):
        # The gradient of the scale, as it is made here, overflows float16.
        if value.dtype == torch.float16:
            later, scale, residual = (residual, scale), None, None
        else:
            later = None, None
        x = _ProductLinear.apply(
            value,
            context,
            linear.weight,
            linear.bias,
            scale,
            residual,
            activate,
        )
        return add_scaled(x, *later)
    value = gelu(value) if activate else value
    return add_scaled(linear(multiply(value, context)), residual, scale)


def add_scaled(
    x: Tensor, residual: Tensor | None, scale: Tensor | None
) -> Tensor:
    """``residual + scale * x``, in one pass where that can be.

    Args:
        x: ``(..., C)``.
        residual: ``(..., C)``; 0 if None.
        scale: ``(C,)``; 1 if None.
    """
    if scale is None:
        return x if residual is None else residual + x
    if residual is None:
        return scale * x
    if residual.dtype == x.dtype == scale.dtype:
        return torch.addcmul(residual, x, scale)
    return residual + scale * x  # under autocast


def gelu(x: Tensor) -> Tensor:
    """GELU that overwrites its input where no gradient is wanted.

    A forward hook that keeps the output of the layer before then sees it
    overwritten.
    """
    return torch.ops.aten.gelu_(x) if _may_overwrite() else F.gelu(x)


def multiply(value: Tensor, context: Tensor) -> Tensor:
    """Value times context, which is broadcast over groups, not repeated.

    Overwrites ``value`` where no gradient is wanted.

    Args:
        value: ``(..., rC)``.
        context: ``(..., C)``.
    """
    if not _may_overwrite():
        return multiply_copy(value, context)
    return (
        _groups(value, context)
        .mul_(context.unsqueeze(-2))
        .reshape(value.shape)
    )


def multiply_copy(value: Tensor, context: Tensor) -> Tensor:
    """The same, but never over ``value``."""
    groups = _groups(value, context) * context.unsqueeze(-2)
    return groups.reshape(value.shape)


def _groups(value: Tensor, context: Tensor) -> Tensor:
    """``(..., rC) -> (..., r, C)``."""
    groups = value.shape[-1] // context.shape[-1]
    return value.reshape(*context.shape[:-1], groups, context.shape[-1])


class _NormLinear(Function):
    """Linear layers of a LayerNorm."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *params: Tensor | None,
    ) -> tuple[Tensor, ...]:
        outs = _norm_linear(x, weight, bias, eps, *params)
        ctx.save_for_backward(x, weight, bias, *params)
        ctx.eps = eps
        # Autocast may have chosen another than that of x.
        ctx.dtype = outs[0].dtype
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiate(
                lambda x, weight, bias, *params: _norm_linear(
                    x, weight, bias, ctx.eps, *params, dtype=ctx.dtype
                ),
                ctx.saved_tensors,
                grads,
                nones=(3,),
            )
        x, weight, bias, *params = ctx.saved_tensors
        y, *stats = torch.native_layer_norm(
            x, x.shape[-1:], weight, bias, ctx.eps
        )
        rows = y.to(ctx.dtype).flatten(0, -2)
        grad_y = None
        found: list[Tensor | None] = []
        for grad, w, b in zip(grads, params[::2], params[1::2], strict=True):
            grad = grad.reshape(-1, grad.shape[-1])
            found += [grad.t() @ rows, None if b is None else grad.sum(0)]
            w = w.to(ctx.dtype)
            grad_y = grad @ w if grad_y is None else grad_y.addmm_(grad, w)
        of_norm = torch.ops.aten.native_layer_norm_backward(
            grad_y.view(x.shape).to(x.dtype),
            x,
            x.shape[-1:],
            *stats,
            weight,
            bias,
            [True, True, bias is not None],
        )
        return *of_norm, None, *found


def _norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *params: Tensor | None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    x = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    if dtype is not None:
        x, *params = (t if t is None else t.to(dtype) for t in (x, *params))
    return tuple(
        F.linear(x, w, b)
        for w, b in zip(params[::2], params[1::2], strict=True)
    )


class _ProductLinear(Function):
    """A linear layer of value times context, in the value's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        context: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        residual: Tensor | None,
        activate: bool,
    ) -> Tensor:
        # A sum needs neither of its terms for their gradients.
        ctx.save_for_backward(value, context, weight, bias, scale)
        ctx.activate = activate
        ctx.dtype = None if residual is None else residual.dtype
        return _product_linear(
            value, context, weight, bias, scale, residual, activate
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_residual = None if ctx.dtype is None else grad.to(ctx.dtype)
        if torch.is_grad_enabled():
            *found, none = _differentiate(
                lambda *tensors: _product_linear(*tensors, None, ctx.activate),
                ctx.saved_tensors,
                (grad,),
                nones=(5,),
            )
            return *found, grad_residual, none
        value, context, weight, bias, scale = ctx.saved_tensors
        # No more than three tensors as wide as the value at a time, and none
        # that is not needed: to allocate them takes as long as to fill them.
        active = F.gelu(value) if ctx.activate else value
        x = active if context is None else multiply_copy(active, context)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_w = grad.to(value.dtype).t() @ x.flatten(0, -2)
        grad_b = None if bias is None else grad.sum(0)
        grad_scale = None
        if scale is not None:
            # The unscaled output is not needed for this.
            grad_scale = (grad_w * weight).sum(1)
            grad_w = grad_w * scale[:, None]
            if bias is not None:
                grad_scale = grad_scale + grad_b * bias
                grad_b = grad_b * scale
            grad = grad * scale
        grad_x = grad.to(value.dtype) @ weight.to(value.dtype)
        grad_x = grad_x.view(value.shape)
        grad_context = None
        if context is not None:
            del x
            grad_context = _groups(grad_x * active, context).sum(-2)
            _groups(grad_x, context).mul_(context.unsqueeze(-2))
        if ctx.activate:
            grad_x = torch.ops.aten.gelu_backward(grad_x, value)
        return (
            grad_x,
            grad_context,
            grad_w,
            grad_b,
            grad_scale,
            grad_residual,
            None,
        )


def _product_linear(
    value: Tensor,
    context: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activate: bool,
) -> Tensor:
    x = F.gelu(value) if activate else value
    if context is not None:
        # Not over the value itself, which is kept.
        x = multiply_copy(x, context)
    x = F.linear(
        x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    )
    return add_scaled(x, residual, scale)


def _differentiate(
    function: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    nones: Sequence[int] = (),
) -> tuple[Tensor | None, ...]:
    """Gradients of the plain operations, which have gradients.

    Args:
        function: The forward pass.
        tensors: What it takes.
        grads: Gradients of what it gives.
        nones: Places among the gradients of what is no tensor.
    """
    present = [x is not None for x in tensors]

    def plain(*given: Tensor) -> Any:
        given = iter(given)
        return function(*(next(given) if there else None for there in present))

    outs, backward = torch.func.vjp(
        plain, *(x for x in tensors if x is not None)
    )
    found = iter(backward(grads if isinstance(outs, tuple) else grads[0]))
    result = [next(found) if there else None for there in present]
    for place in nones:
        result.insert(place, None)
    return tuple(result)
