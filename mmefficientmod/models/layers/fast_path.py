"""The fast path of whole blocks, and when it may run.

A block's ``forward`` asks :func:`may_run` first. If the fast path may not run,
``forward`` computes the paper's equation. The fast path gives the same result,
as ``tests/test_models/test_fast_path.py`` checks, in less time and memory:

- with gradients, layers have backward passes of their own, which save less
  and are faster, see :mod:`mmefficientmod.models.layers.memory_efficient`;
- without gradients, GELU and product overwrite their inputs, and wide tensors
  of large images are computed in chunks that fit a CPU's cache;
- layer scale and residual are added in one operation.

The fast path reads the weights of some layers without calling these layers,
and it never calls the modules that hold the layers, such as a block's MLP. So
it runs only if each module inside the block has the class that the block was
built with, and no hook.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.models.layers.attention import self_attention
from mmefficientmod.models.layers.depthwise import depthwise_conv
from mmefficientmod.models.layers.layout import to_nchw_view, to_nhwc
from mmefficientmod.models.layers.memory_efficient import (
    add_scaled,
    gelu_linear,
    gelu_mlp,
    linear,
    linear_gelu,
    norm_linear,
    norm_linear_gelu,
    norm_mlp,
    product_linear,
)
from mmefficientmod.models.layers.plain import has_hooks, is_plain
from mmefficientmod.models.layers.reparam import Branch, ParallelBranches
from mmefficientmod.torch_private import (
    has_global_hooks,
    is_compiling,
    is_transformed,
)

# About the size of a CPU's second-level cache. The speed is not sensitive to
# it: half or twice makes no difference.
CHUNK_BYTES = 4 * 2**20
# The class of each layer in a block, by the layer's name.
LAYERS: dict[str, tuple[type[nn.Module]]] = {
    **dict.fromkeys(('norm', 'norm1', 'norm2'), (nn.LayerNorm,)),
    **dict.fromkeys(('f', 'g', 'fc1', 'fc2', 'qkv', 'proj'), (nn.Linear,)),
    'conv': (nn.Conv2d,),
}


class FastPath:
    """The fast path of one class of blocks, an attribute of that class.

    Args:
        function: Takes the block and its input, and returns what the block's
            equation gives.
        *classes: The classes of the modules inside the block that hold
            layers. With a subclass in their place, the fast path does not
            run.
    """

    def __init__(
        self,
        function: Callable[[Any, Tensor], Tensor],
        *classes: type[nn.Module],
    ) -> None:
        self.function = function
        self.classes = frozenset(classes)

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        """What the block gives for ``x``; see :func:`may_run`."""
        return self.function(block, x)


def may_run(block: Any, x: Tensor) -> bool:
    """Whether the fast path of a block may run, and is worth it.

    It may not run:

    - if a hook, LoRA, quantisation or a subclass changes a module of the
      block: the fast path might not call it;
    - while the model is traced or compiled: the graph must not depend on
      whether gradients are enabled;
    - under ``torch.func`` and for subclasses of Tensor, which know PyTorch's
      own operations only.

    It is not worth it if gradients are enabled and a weight is frozen: then
    PyTorch's own backward passes save less.

    Args:
        block: A module with an attribute ``fast_path``.
        x: Its input.
    """
    # First, as torch 2.1's Dynamo cannot trace the rest.
    if is_compiling():
        return False
    return not (
        torch.jit.is_tracing()
        or type(x) is not Tensor  # such as a Proxy of torch.fx
        or is_transformed()
        or has_global_hooks()
    ) and _children_are_plain(
        block, block.fast_path.classes, torch.is_grad_enabled()
    )


def _children_are_plain(
    module: nn.Module, classes: frozenset[type[nn.Module]], trained: bool
) -> bool:
    """Whether each module inside a module has its original class, no hooks.

    Args:
        module: A block, or a module inside it.
        classes: Classes of the modules inside the block that hold layers.
        trained: Whether all weights must require gradients.
    """
    for name, child in module._modules.items():
        if child is None:
            continue
        if name in LAYERS:
            if not is_plain(child, LAYERS[name]) or (
                trained and not child.weight.requires_grad
            ):
                return False
        elif name == 'drop_path':  # is called as a module
            if has_hooks(child):
                return False
        elif name == 'branches':
            if not _branches_are_plain(child, trained):
                return False
        elif (
            type(child) not in classes
            or has_hooks(child)
            or not _children_are_plain(child, classes, trained)
        ):
            return False
    return True


def _branches_are_plain(branches: Any, trained: bool) -> bool:
    """The same for parallel branches, whose norms are called as modules."""
    return (
        type(branches) is ParallelBranches
        and not has_hooks(branches)
        and all(
            type(branch) is Branch
            and not has_hooks(branch)
            and not has_hooks(branch.norm)
            and (
                branch.conv is None
                or (
                    is_plain(branch.conv, (nn.Conv2d,))
                    and (branch.conv.weight.requires_grad or not trained)
                )
            )
            for branch in branches.values()
        )
    )


def modulation_block(block: Any, x: Tensor) -> Tensor:
    """``x + gamma * fc2(ctx(y) * GELU(fc1(y)))`` with ``y = norm(x)``.

    With the expansion ratio 1 there is no GELU.

    Args:
        block: A ``ModulationBlock``.
        x: ``(N, H, W, C)``.

    Returns:
        ``(N, H, W, C)``.
    """
    mlp = block.mlp
    activate = mlp.expand_ratio > 1
    residual = None if _drops_paths(block) else x
    if torch.is_grad_enabled():
        # f and fc1 read the same input, but one matrix product for both is
        # slower on a CPU: its two halves are not contiguous, which the
        # convolution and the GELU pay for.
        y, value = norm_linear(x, block.norm, mlp.context.f, mlp.fc1)
        context = _context(mlp.context, y)
        out = product_linear(
            value, context, mlp.fc2, activate, block.gamma, residual
        )
    else:
        expand = linear_gelu if activate else linear

        def product(
            y: Tensor, context: Tensor, residual: Tensor | None
        ) -> Tensor:
            return product_linear(
                expand(y, mlp.fc1),
                context,
                mlp.fc2,
                False,
                block.gamma,
                residual,
            )

        y = block.norm(x)
        context = _context(mlp.context, linear(y, mlp.context.f))
        width = mlp.fc1.out_features
        out = in_chunks(product, y, context, residual, width=width)
    return out if residual is x else x + block.drop_path(out)


def _context(layers: Any, x: Tensor) -> Tensor:
    """``g(GELU(conv(x)))`` of a ``ContextBranch``, with branches beside conv.

    Args:
        layers: The ``ContextBranch``.
        x: The output of its layer ``f``, ``(N, H, W, C)``.

    Returns:
        ``(N, H, W, C)``.
    """
    x = to_nchw_view(x)
    out = depthwise_conv(x, layers.conv)
    if layers.branches is not None:
        for branch in layers.branches.values():
            y = x if branch.conv is None else depthwise_conv(x, branch.conv)
            out = out + branch.norm(y)
    return gelu_linear(to_nhwc(out), layers.g)


def mbconv_block(block: Any, x: Tensor) -> Tensor:
    """``x + gamma * fc2(GELU(conv(GELU(fc1(norm(x))))))``.

    Args:
        block: An ``MBConvBlock``.
        x: ``(N, H, W, C)``.

    Returns:
        ``(N, H, W, C)``.
    """
    mlp = block.mlp
    residual = None if _drops_paths(block) else x
    y = norm_linear_gelu(x, block.norm, mlp.fc1)
    y = to_nhwc(depthwise_conv(to_nchw_view(y), mlp.conv))
    out = add_scaled(gelu_linear(y, mlp.fc2), residual, block.gamma)
    return out if residual is x else x + block.drop_path(out)


def attention_block(block: Any, x: Tensor) -> Tensor:
    """``y + mlp(norm2(y))`` with ``y = x + attn(norm1(x))``.

    Args:
        block: An ``AttentionBlock``.
        x: ``(N, H, W, C)``.

    Returns:
        ``(N, H, W, C)``.
    """
    attn, mlp, shape = block.attn, block.mlp, x.shape
    x = x.flatten(1, 2)  # (N, L, C)
    (y,) = norm_linear(x, block.norm1, attn.qkv)
    y = linear(self_attention(y, attn.head_dim), attn.proj)
    x = x + block.drop_path(y)
    y = norm_mlp(x, block.norm2, mlp.fc1, mlp.fc2)
    return (x + block.drop_path(y)).view(shape)


def mlp_layers(block: Any, x: Tensor) -> Tensor:
    """``fc2(GELU(fc1(x)))`` of EdgeViT's MLP, ``(..., C) -> (..., C)``."""
    return gelu_mlp(x, block.fc1, block.fc2)


def _drops_paths(block: Any) -> bool:
    """Whether stochastic depth is active, before the residual is added."""
    return block.training and not isinstance(block.drop_path, nn.Identity)


def in_chunks(
    function: Callable[..., Tensor], *tensors: Tensor | None, width: int
) -> Tensor:
    """Apply a function of positions to a few positions at a time.

    Tensors inside the function that are wider than its input and output then
    stay in the caches of a CPU. They are also allocated faster: PyTorch's CPU
    allocator gives the memory of each large tensor back to the system, and
    asking the system for it again is slow.

    Args:
        function: Takes and returns tensors ``(rows, C_i)``, row by row.
        tensors: ``(..., C_i)``, or None.
        width: Channels of the widest tensor inside the function. With few
            positions, or on another device, there is one chunk.
    """
    first = tensors[0]
    assert first is not None
    shape = first.shape[:-1]
    rows = math.prod(shape)
    count = rows * width * first.element_size() // CHUNK_BYTES
    if count < 2 or first.device.type != 'cpu':
        return function(*tensors)
    step = math.ceil(rows / count)
    flat = [x if x is None else x.flatten(0, -2) for x in tensors]
    outs = [
        function(*(x if x is None else x[i : i + step] for x in flat))
        for i in range(0, rows, step)
    ]
    return torch.cat(outs).view(*shape, -1)
