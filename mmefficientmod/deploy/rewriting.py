"""Functions that take the place of others while a model is recorded.

A tracer records the operations on one image. Where the toolboxes or PyTorch
compute a size by Python numbers, or use an operation that ONNX lacks, the
functions here compute the same by operations on tensors, for any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmefficientmod.rng import forked_rng

_adaptive_avg_pool2d = F.adaptive_avg_pool2d
_layer_norm = F.layer_norm
_torch_attention = F.multi_head_attention_forward


@contextmanager
def rewritten() -> Iterator[None]:
    """Inside of the block, models can be recorded for any size."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, function: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, function))

        replace(F, 'adaptive_avg_pool2d', adaptive_avg_pool2d)
        replace(F, 'layer_norm', layer_norm)
        replace(F, 'multi_head_attention_forward', _multi_head_attention)
        # The toolboxes have branches for the exporter of PyTorch 1.
        replace(torch.onnx, 'is_in_onnx_export', lambda: False)
        for place, name, function in METHODS:
            owner = _find(place)
            if owner is not None:
                replace(owner, name, function)
        yield


def _find(place: str) -> Any:
    """A class by module and name; None if its toolbox is not installed."""
    module, _, name = place.partition(':')
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def fix_random_bases(model: nn.Module) -> None:
    """Draw the random bases of Hamburger heads once, from a fixed seed.

    SegNeXt's head draws them anew for each batch, so that no prediction
    equals the one before.

    Args:
        model: The model, changed in place.
    """
    module: Any
    ham: Any
    for module in model.modules():
        ham = getattr(module, 'ham', None)
        if getattr(ham, 'rand_init', False):
            weight = module.ham_in.conv.weight
            with forked_rng(0):
                bases = ham._build_bases(
                    1, ham.S, len(weight) // ham.S, ham.R, weight.device
                )
            ham.rand_init = False
            ham.register_buffer('bases', bases)


def adaptive_avg_pool2d(x: Tensor, output_size: int | Sequence) -> Tensor:
    """``(N, C, H, W)`` to the output size, by two matrix products.

    ONNX has a mean over the whole image only.
    """
    size = x.shape[-2:]
    wanted = (
        [output_size] * 2
        if isinstance(output_size, int)
        else [
            s if o is None else o
            for o, s in zip(output_size, size, strict=True)
        ]
    )
    if list(wanted) == [1, 1]:
        return _adaptive_avg_pool2d(x, 1)
    rows, columns = (
        _means(s, o, x) for s, o in zip(size, wanted, strict=True)
    )
    return rows @ x @ columns.transpose(0, 1)


def _means(length: Any, number: Any, like: Tensor) -> Tensor:
    """The matrix, ``(number, length)``, of means over parts of a length."""
    i = torch.arange(number, device=like.device)
    first = i * length // number
    last = ((i + 1) * length + number - 1) // number  # excluded
    position = torch.arange(length, device=like.device)
    inside = (position >= first[:, None]) & (position < last[:, None])
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm with a shape that the exporter knows."""
    if weight is not None:  # the shape may be that of a recorded tensor
        normalized_shape = tuple(int(n) for n in weight.shape)
    return _layer_norm(x, normalized_shape, weight, bias, eps)


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention, ``(L, N, C)``; PyTorch's keeps the length of the keys."""
    unusual = (
        in_proj_weight is None
        or bias_k is not None
        or bias_v is not None
        or add_zero_attn
        or args
        or any(
            kwargs.get(name) is not None
            for name in ('key_padding_mask', 'attn_mask')
        )
        or kwargs.get('use_separate_proj_weight')
    )
    if unusual:
        return _torch_attention(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight,
            in_proj_bias, bias_k, bias_v, add_zero_attn, dropout_p,
            out_proj_weight, out_proj_bias, *args, **kwargs,
        )  # fmt: skip
    assert in_proj_weight is not None
    weights = in_proj_weight.chunk(3)
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (  # (N, heads, L, C / heads)
        F.linear(x, w, b)
        .transpose(0, 1)
        .unflatten(-1, (num_heads, -1))
        .transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scale = q.shape[-1] ** -0.5
    attention = (q * scale @ k.transpose(-2, -1)).softmax(-1)
    out = (attention @ v).transpose(1, 2).flatten(2).transpose(0, 1)
    return F.linear(out, out_proj_weight, out_proj_bias), attention.mean(1)


def _adaptive_padding(self: Any, x: Tensor) -> Tensor:
    """The toolboxes' ``AdaptivePadding``, which pads by Python numbers."""
    pads = [
        _padding(n, kernel, stride, dilation)
        for n, kernel, stride, dilation in zip(
            x.shape[-2:],
            self.kernel_size,
            self.stride,
            self.dilation,
            strict=True,
        )
    ]
    before = [n // 2 if self.padding == 'same' else 0 for n in pads]
    (top, left), (height, width) = before, pads
    return F.pad(x, (left, width - left, top, height - top))


def _padding(length: Any, kernel: int, stride: int, dilation: int) -> Any:
    """What a side lacks, so that the windows of a convolution cover it."""
    windows = (length + stride - 1) // stride
    lacks = (windows - 1) * stride + (kernel - 1) * dilation + 1 - length
    return lacks.clamp(min=0) if isinstance(lacks, Tensor) else max(lacks, 0)


def _window_reverse(
    self: Any, windows: Tensor, height: Any, width: Any
) -> Tensor:
    """Swin's windows as images; the toolboxes' keeps the number of images.

    Args:
        self: The attention of the windows.
        windows: ``(N * windows, side, side, C)``.
        height: Height H of the images.
        width: Width W of the images.

    Returns:
        ``(N, H, W, C)``.
    """
    side = windows.shape[1]
    x = windows.reshape(
        -1, height // side, width // side, side, side, windows.shape[-1]
    )
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def _upsample(self: Any, x: Tensor) -> Tensor:
    """MMSegmentation's ``Upsample``, whose size is a Python number."""
    size = self.size
    if not size:
        factor = self.scale_factor
        factors = factor if isinstance(factor, tuple) else (factor, factor)
        whole = all(f == int(f) for f in factors)
        size = [
            n * int(f) if whole else int(n * f)
            for n, f in zip(x.shape[-2:], factors, strict=True)
        ]
    return F.interpolate(
        x, size, mode=self.mode, align_corners=self.align_corners
    )


# Methods of the toolboxes, by class and name.
METHODS = (
    *(
        (
            f'{toolbox}.models.backbones.swin:ShiftWindowMSA',
            'window_reverse',
            _window_reverse,
        )
        for toolbox in ('mmdet', 'mmseg')
    ),
    (
        'mmpretrain.models.utils.attention:ShiftWindowMSA',
        'window_reverse',
        staticmethod(
            lambda windows, height, width, side: _window_reverse(
                None, windows, height, width
            )
        ),
    ),
    ('mmseg.models.utils.wrappers:Upsample', 'forward', _upsample),
    *(
        (f'{module}:AdaptivePadding', 'forward', _adaptive_padding)
        for module in (
            'mmcv.cnn.bricks.transformer',
            'mmdet.models.layers.transformer.utils',
            'mmseg.models.utils.embed',
        )
    ),
)
