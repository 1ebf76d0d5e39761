"""Linear layers that keep what their input was made of, not the input.

For its backward pass a linear layer keeps its input. Here that input is cheap
to make: a LayerNorm, a GELU or a product of tensors that are needed anyway.
These functions keep the latter alone and make the input again when its
gradient is asked for, which no matrix product is repeated for. That is the
memory of most of a block, and on a CPU time as well, since memory that is not
kept is still in the cache.

While the network is traced or compiled, and where no gradient is wanted, they
are the plain modules one after another: a compiler decides by itself what it
makes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

# torch 2.1 has it in another place.
is_compiling = getattr(torch.compiler, 'is_compiling', None)
if is_compiling is None:
    is_compiling = torch._dynamo.is_compiling


def norm_linear(
    x: Tensor, norm: nn.LayerNorm, *linears: nn.Linear
) -> list[Tensor]:
    """Linear layers that read the same LayerNorm; keeps ``x`` alone.

    Args:
        x: ``(..., C)``.
        norm: Over the C channels.
        linears: From C to any number of channels each.

    Returns:
        What each layer gives, ``(..., C_i)``.
    """
    if not _recomputes(norm, *linears):
        x = norm(x)
        return [linear(x) for linear in linears]
    make = _Norm(norm.eps)
    return _apply(make, (x, norm.weight, norm.bias), linears)


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(GELU(x))``; keeps ``x`` alone.

    Overwrites ``x`` where no gradient is wanted.

    Args:
        x: ``(..., C)``.
        linear: From C to C_out channels.

    Returns:
        ``(..., C_out)``.
    """
    if not _recomputes(linear):
        return linear(gelu(x))
    return _apply(_Product(activate=True), (x, None), (linear,))[0]


def product_linear(
    value: Tensor,
    context: Tensor,
    linear: nn.Linear,
    activate: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """``scale * linear(context * value)``; keeps value and context alone.

    Overwrites ``value`` where no gradient is wanted.

    Args:
        value: ``(..., rC)``: r groups of C channels.
        context: ``(..., C)``, which multiplies each group.
        linear: From rC to C_out channels.
        activate: Whether the value goes through a GELU first.
        scale: ``(C_out,)``; 1 if None.

    Returns:
        ``(..., C_out)``.
    """
    if not _recomputes(linear):
        value = gelu(value) if activate else value
        x = linear(_product(value, context, torch.is_grad_enabled()))
        if scale is None:
            return x
        return x * scale if torch.is_grad_enabled() else x.mul_(scale)
    made = _Product(activate), (value, context), (linear,)
    if scale is None or value.dtype == torch.float16:
        # The gradient of the scale, as it is made here, overflows float16.
        x = _apply(*made)[0]
        return x if scale is None else x * scale
    return _apply(*made, scale)[0]


def gelu(x: Tensor) -> Tensor:
    """GELU that overwrites its input where no gradient is wanted.

    A forward hook that keeps the output of the layer before then sees it
    overwritten.
    """
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def _product(value: Tensor, context: Tensor, copy: bool = True) -> Tensor:
    # The context is broadcast over the r groups instead of repeated.
    groups = _groups(value, context)
    context = context.unsqueeze(-2)
    groups = groups * context if copy else groups.mul_(context)
    return groups.reshape(value.shape)


def _groups(value: Tensor, context: Tensor) -> Tensor:
    """``(..., rC) -> (..., r, C)``."""
    return value.reshape(*context.shape[:-1], -1, context.shape[-1])


def _recomputes(*modules: nn.Module) -> bool:
    # A module that is more than its weights, by its class or by a hook, has
    # to be called.
    return (
        torch.is_grad_enabled()
        and not is_compiling()
        and not torch.jit.is_tracing()
        and all(
            type(m) in (nn.Linear, nn.LayerNorm)
            and m.weight is not None
            and not m._forward_hooks
            and not m._forward_pre_hooks
            and not m._backward_hooks
            and not m._backward_pre_hooks
            for m in modules
        )
    )


def _apply(
    make: _Norm | _Product,
    operands: Sequence[Tensor | None],
    linears: Sequence[nn.Linear],
    scale: Tensor | None = None,
) -> Sequence[Tensor]:
    weights = [p for m in linears for p in (m.weight, m.bias)]
    return _MadeLinear.apply(make, len(operands), *operands, scale, *weights)


@dataclass(frozen=True)
class _Norm:
    """LayerNorm of ``x`` with an affine weight and bias."""

    eps: float

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Any]:
        y, *stats = torch.native_layer_norm(
            x, x.shape[-1:], weight, bias, self.eps
        )
        return y, stats

    def backward(
        self, grad: Tensor, stats: Any, x: Tensor, weight: Tensor, bias: Tensor
    ) -> Sequence[Tensor]:
        return torch.ops.aten.native_layer_norm_backward(
            grad.to(x.dtype),
            x,
            x.shape[-1:],
            *stats,
            weight,
            bias,
            [True, True, True],
        )


@dataclass(frozen=True)
class _Product:
    """Value times context, or the value alone where that is None."""

    activate: bool

    def __call__(
        self, value: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Any]:
        active = F.gelu(value) if self.activate else value
        y = active if context is None else _product(active, context)
        return y, active

    def backward(
        self, grad: Tensor, active: Any, value: Tensor, context: Tensor | None
    ) -> Sequence[Tensor | None]:
        grad_context = None
        if context is not None:
            grad_context = _groups(grad * active, context).sum(-2)
            grad = _product(grad, context)
        if self.activate:
            grad = torch.ops.aten.gelu_backward(grad, value)
        return grad, grad_context


class _MadeLinear(Function):
    """Linear layers of an input that is made, here and again for gradients.

    Inputs: how it is made, the number of operands, the operands, the scale of
    the outputs, then weight and bias of each layer.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        make: _Norm | _Product, num_operands: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        operands, scale, weights, biases = _split(num_operands, tensors)
        return _linear(make(*operands)[0], scale, weights, biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.make, ctx.num_operands, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        # That of the products, which autocast may have chosen.
        scaled = tensors[ctx.num_operands] is not None
        ctx.dtype = tensors[0].dtype if scaled else output[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        backward = _differentiable if torch.is_grad_enabled() else _backward
        with torch.autocast(grads[0].device.type, enabled=False):
            return None, None, *backward(ctx, grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        """Forward-mode derivatives, those of the plain operations.

        The backward pass is linear in the gradients that it is given, and
        its own backward pass is the derivative forward. PyTorch nests these
        where it does not nest forward modes.
        """
        plain, given = _plain(ctx)
        tangents = [
            torch.zeros_like(x) if t is None else t
            for x, t in zip(ctx.saved_tensors, tangents[2:], strict=True)
            if x is not None
        ]
        outs, backward = torch.func.vjp(plain, *given)
        zeros = tuple(torch.zeros_like(x) for x in outs)
        _, forward = torch.func.vjp(backward, zeros)
        return forward(tuple(tangents))[0]


def _linear(
    x: Tensor,
    scale: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    outs = [F.linear(x, *p) for p in zip(weights, biases, strict=True)]
    return tuple(outs if scale is None else [scale * x for x in outs])


def _backward(ctx: Any, grads: Sequence[Tensor]) -> list[Tensor | None]:
    operands, scale, weights, biases = _split(
        ctx.num_operands, ctx.saved_tensors
    )
    x, kept = ctx.make(*operands)
    shape = x.shape
    x = x.to(ctx.dtype).reshape(-1, shape[-1])
    grad_x = grad_scale = None
    grad_params = []
    for w, b, grad in zip(weights, biases, grads, strict=True):
        grad = grad.reshape(-1, grad.shape[-1])
        grad_w = grad.to(ctx.dtype).t() @ x
        grad_b = None if b is None else grad.sum(0)
        if scale is not None:
            # The unscaled output is not needed for this.
            grad_scale = (grad_w * w).sum(1)
            grad_w = grad_w * scale[:, None]
            if b is not None:
                grad_scale = grad_scale + grad_b * b
                grad_b = grad_b * scale
            grad = grad * scale
        grad, w = grad.to(ctx.dtype), w.to(ctx.dtype)
        grad_x = grad @ w if grad_x is None else grad_x.addmm_(grad, w)
        grad_params += [grad_w, grad_b]
    grad_operands = ctx.make.backward(grad_x.view(shape), kept, *operands)
    return [*grad_operands, grad_scale, *grad_params]


def _differentiable(ctx: Any, grads: Sequence[Tensor]) -> list[Tensor | None]:
    # Gradients that have gradients: those of the plain operations.
    plain, given = _plain(ctx)
    found = iter(torch.func.vjp(plain, *given)[1](tuple(grads)))
    return [x if x is None else next(found) for x in ctx.saved_tensors]


def _plain(ctx: Any) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The forward pass as plain operations, and the tensors that it takes."""
    tensors = ctx.saved_tensors

    def plain(*given: Tensor) -> tuple[Tensor, ...]:
        given = iter(given)
        inputs = [x if x is None else next(given) for x in tensors]
        operands, scale, weights, biases = _split(ctx.num_operands, inputs)
        x = ctx.make(*operands)[0].to(ctx.dtype)
        weights = [w.to(ctx.dtype) for w in weights]
        biases = [b if b is None else b.to(ctx.dtype) for b in biases]
        return _linear(x, scale, weights, biases)

    return plain, [x for x in tensors if x is not None]


def _split(num_operands: int, tensors: Sequence[Tensor | None]) -> tuple:
    scale, *params = tensors[num_operands:]
    return tensors[:num_operands], scale, params[::2], params[1::2]
