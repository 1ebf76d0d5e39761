"""Layers with backward passes of their own, for less memory and time.

A linear layer saves its input for the backward pass. In the blocks here that
input is the output of a LayerNorm, a GELU or a product, which in PyTorch save
their own inputs as well. The functions here save the inputs of the LayerNorm,
the GELU or the product only, and compute the input of the linear layer again
in the backward pass; no matrix product is recomputed. This saves most of a
block's memory.

The fast path of a block calls them, where each layer is plain; see
:class:`mmefficientmod.models.layers.fast_path.FastPath`. If gradients are
disabled, they run the layers one after another and overwrite tensors that
nobody reads again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmefficientmod.models.layers import matmul


def norm_linear(
    x: Tensor, norm: nn.LayerNorm, *linears: nn.Linear
) -> Sequence[Tensor]:
    """Linear layers that read the same LayerNorm; saves ``x`` alone.

    Args:
        x: ``(..., C)``.
        norm: Over the C channels.
        linears: From C to any number of channels each.

    Returns:
        The output of each linear layer, ``(..., C_i)``.
    """
    if not torch.is_grad_enabled():
        x = norm(x)
        return [matmul.linear(x, m.weight, m.bias) for m in linears]
    if x.is_cuda:
        # As autocast does: the kernels of a GPU take a single dtype.
        x = x.to(norm.weight.dtype)
    params = [p for m in linears for p in (m.weight, m.bias)]
    return _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, *params)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)``, whose products run in the faster library.

    Args:
        x: ``(..., C)``.
        layer: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        return matmul.linear(x, layer.weight, layer.bias)
    return _ProductLinear.apply(
        x, None, layer.weight, layer.bias, None, None, False
    )


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``GELU(layer(x))``, without gradients.

    Args:
        x: ``(..., C)``.
        layer: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    return matmul.linear_gelu(x, layer.weight, layer.bias)


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(GELU(x))``; saves ``x`` alone.

    Overwrites ``x`` if gradients are disabled.

    Args:
        x: ``(..., C)``.
        linear: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        return matmul.linear(gelu(x), linear.weight, linear.bias)
    return _ProductLinear.apply(
        x, None, linear.weight, linear.bias, None, None, True
    )


def norm_linear_gelu(
    x: Tensor, norm: nn.LayerNorm, layer: nn.Linear
) -> Tensor:
    """``GELU(layer(norm(x)))``; saves ``x`` and the GELU's input.

    Args:
        x: ``(..., C)``.
        norm: Over the C channels.
        layer: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        return linear_gelu(norm(x), layer)
    (y,) = norm_linear(x, norm, layer)
    return F.gelu(y)


def norm_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear
) -> Tensor:
    """``fc2(GELU(fc1(norm(x))))``; saves ``x`` and the output of ``fc1``.

    Args:
        x: ``(..., C)``.
        norm: Over the C channels.
        fc1: From C to any number of channels.
        fc2: From these to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        return gelu_mlp(norm(x), fc1, fc2)
    (y,) = norm_linear(x, norm, fc1)
    return gelu_linear(y, fc2)


def gelu_mlp(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """``fc2(GELU(fc1(x)))``; saves ``x`` and the output of ``fc1``.

    Args:
        x: ``(..., C)``.
        fc1: From C to any number of channels.
        fc2: From these to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        return linear(linear_gelu(x, fc1), fc2)
    return gelu_linear(linear(x, fc1), fc2)


def product_linear(
    value: Tensor,
    context: Tensor,
    linear: nn.Linear,
    activate: bool,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``residual + scale * linear(context * value)``.

    Saves value and context alone for the backward pass. Overwrites the value
    if gradients are disabled.

    Args:
        value: ``(..., rC)``: r groups of C channels.
        context: ``(..., C)``, which multiplies each group; of the value's
            dtype.
        linear: From rC to C_out channels.
        activate: Whether the value goes through a GELU first.
        scale: ``(C_out,)``; 1 if None.
        residual: ``(..., C_out)``; 0 if None.

    Returns:
        ``(..., C_out)``.
    """
    if not torch.is_grad_enabled():
        value = gelu(value) if activate else value
        _groups(value, context).mul_(context.unsqueeze(-2))
        x = matmul.linear(value, linear.weight, linear.bias)
        return add_scaled(x, residual, scale)
    params = linear.weight, linear.bias
    if value.dtype == torch.float16:
        # The gradient of the scale, as _ProductLinear computes it, overflows.
        x = _ProductLinear.apply(value, context, *params, None, None, activate)
        return add_scaled(x, residual, scale)
    return _ProductLinear.apply(
        value, context, *params, scale, residual, activate
    )


def add_scaled(
    x: Tensor, residual: Tensor | None, scale: Tensor | None
) -> Tensor:
    """``residual + scale * x``, in one operation where dtypes allow it.

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
    """GELU that overwrites its input if gradients are disabled."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def multiply(value: Tensor, context: Tensor) -> Tensor:
    """Value times context, which is broadcast over groups, not repeated.

    Args:
        value: ``(..., rC)``: r groups of C channels.
        context: ``(..., C)``.

    Returns:
        ``(..., rC)``.
    """
    groups = _groups(value, context) * context.unsqueeze(-2)
    return groups.reshape(value.shape)


def _groups(value: Tensor, context: Tensor) -> Tensor:
    """``(..., rC) -> (..., r, C)``, a view, which may be overwritten.

    By ``view``: ``unflatten`` does not run under batched gradients.
    """
    groups = value.shape[-1] // context.shape[-1]
    return value.view(*context.shape[:-1], groups, context.shape[-1])


class _NormLinear(Function):
    """Linear layers that read the same LayerNorm."""

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
        # Autocast may have chosen another dtype than that of x.
        ctx.dtype = outs[0].dtype
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return differentiate(
                lambda x, weight, bias, *params: _norm_linear(
                    x, weight, bias, ctx.eps, *params, dtype=ctx.dtype
                ),
                ctx.saved_tensors,
                grads,
                non_tensors=(3,),
            )
        x, weight, bias, *params = ctx.saved_tensors
        y, *stats = torch.native_layer_norm(
            x, x.shape[-1:], weight, bias, ctx.eps
        )
        rows = y.to(ctx.dtype).flatten(0, -2)
        grad_y: Any = None
        grad_params: list[Tensor | None] = []
        for grad, w, b in zip(grads, params[::2], params[1::2], strict=True):
            grad = grad.reshape(-1, grad.shape[-1])
            grad_params += [
                matmul.weight_gradient(grad, rows),
                None if b is None else grad.sum(0),
            ]
            part = matmul.input_gradient(grad, w.to(ctx.dtype))
            # Summed in the dtype of x, as under PyTorch's autocast: a sum of
            # two finite float16 can overflow.
            grad_y = part.to(x.dtype) if grad_y is None else grad_y.add_(part)
        grad_norm = torch.ops.aten.native_layer_norm_backward(
            grad_y.view(x.shape),
            x,
            x.shape[-1:],
            *stats,
            weight,
            bias,
            [True, True, bias is not None],
        )
        return *grad_norm, None, *grad_params


def _norm_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *params: Tensor | None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    x = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    given: Sequence[Any] = params
    if dtype is not None:
        x = x.to(dtype)
        given = [t if t is None else t.to(dtype) for t in params]
    return tuple(
        matmul.linear(x, w, b)
        for w, b in zip(given[::2], given[1::2], strict=True)
    )


class _ProductLinear(Function):
    """``residual + scale * linear(value * context)``, see product_linear.

    The linear layer runs in the dtype of the value.
    """

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
        # The addition of the residual saves nothing for backward.
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
            *grads, grad_activate = differentiate(
                lambda value, context, weight, bias, scale: _product_linear(
                    value, context, weight, bias, scale, None, ctx.activate
                ),
                ctx.saved_tensors,
                (grad,),
                non_tensors=(5,),
            )
            return *grads, grad_residual, grad_activate
        value, context, weight, bias, scale = ctx.saved_tensors
        # At most three tensors as wide as the value exist at a time: the
        # allocation of such a tensor takes as long as the operation that
        # fills it.
        active = F.gelu(value) if ctx.activate else value
        x = active if context is None else multiply(active, context)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_w = matmul.weight_gradient(grad.to(value.dtype), x.flatten(0, -2))
        grad_b = None if bias is None else grad.sum(0)
        grad_scale = None
        if scale is not None:
            # From the weight's gradient: the output need not be saved.
            grad_scale = (grad_w * weight).sum(1)
            grad_w = grad_w * scale[:, None]
            if bias is not None:
                grad_scale = grad_scale + grad_b * bias
                grad_b = grad_b * scale
            grad = grad * scale
        grad_x = matmul.input_gradient(
            grad.to(value.dtype), weight.to(value.dtype)
        ).view(value.shape)
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
        # Not in place: the value is saved.
        x = multiply(x, context)
    x = matmul.linear(
        x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    )
    return add_scaled(x, residual, scale)


def differentiate(
    function: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    non_tensors: Sequence[int] = (),
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again, for double backward.

    Args:
        function: The forward pass, in operations of PyTorch.
        tensors: Its arguments; None for a tensor that is left out.
        grads: The gradients of its outputs.
        non_tensors: Positions at which the ``Function`` has an argument that
            is no tensor; the gradient there is None.

    Returns:
        The gradients of the arguments of the ``Function``.
    """
    is_given = [x is not None for x in tensors]

    def without_nones(*given: Tensor) -> Any:
        remaining = iter(given)
        return function(
            *(next(remaining) if exists else None for exists in is_given)
        )

    # PyTorch types the result as if there were always an auxiliary output.
    outs, backward, *_ = torch.func.vjp(
        without_nones, *(x for x in tensors if x is not None)
    )
    remaining = iter(backward(grads if isinstance(outs, tuple) else grads[0]))
    result = [next(remaining) if exists else None for exists in is_given]
    for position in non_tensors:
        result.insert(position, None)
    return tuple(result)
