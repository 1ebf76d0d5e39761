"""Parameters and FLOPs of a model, as OpenMMLab counts them.

A multiply-add is one FLOP. Convolutions, matrix products, attention, norms and
interpolation count; activations and element-wise sums and products do not.
MMEngine's analyser counts most of these, and the handles in this module add
attention, deformable convolution and bicubic interpolation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer, parameter_count
from mmengine.analysis.jit_handles import (
    conv_flop_count,
    elementwise_flop_counter,
    get_shape,
)
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import sdpa_flop_count

from mmefficientmod.rng import forked_rng

# Operators that have no FLOPs by the convention: element-wise ones, copies,
# pooling, softmax, sums and sorting. They are not listed as not counted.
CHEAP = frozenset(
    f'aten::{name}{suffix}'
    for name in (
        '_shape_as_tensor', 'abs', 'adaptive_avg_pool1d', 'add', 'addcmul',
        'avg_pool2d', 'clamp_min', 'clone', 'cos', 'cumsum', 'div', 'erf',
        'exp', 'expand_as', 'feature_dropout', 'fill', 'gelu', 'hardsigmoid',
        'hardswish', 'hardtanh', 'im2col', 'index_select', 'leaky_relu',
        'linspace', 'log', 'log2',
        'max_pool2d', 'mean', 'meshgrid', 'mul', 'ne', 'neg', 'new_ones',
        'pad', 'pow', 'repeat', 'rsqrt', 'rsub', 'sigmoid', 'silu', 'sin',
        'softmax', 'sort', 'sqrt', 'sub', 'sum', 'tanh', 'topk', 'unflatten',
        'where',
    )
    for suffix in ('', '_')
)  # fmt: skip


@dataclass(frozen=True)
class Complexity:
    """Parameters and FLOPs of a model for one image.

    Attributes:
        size: Height and width of the input, in pixels.
        params: Parameters of the whole model.
        flops: FLOPs of the whole model, a multiply-add counted once.
        backbone_params: Parameters of the backbone; None without one.
        backbone_flops: FLOPs of the backbone; None without one.
        by_operator: FLOPs of each kind of operator.
        uncounted: Operators that may have a cost but are not counted, and how
            often each ran.
    """

    size: tuple[int, int]
    params: int
    flops: int
    backbone_params: int | None
    backbone_flops: int | None
    by_operator: dict[str, int]
    uncounted: dict[str, int]


def image_metainfo(size: tuple[int, int]) -> dict[str, Any]:
    """What a data sample says of an image that was neither scaled nor padded.

    Args:
        size: Height and width, in pixels.
    """
    shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    return dict.fromkeys(shapes, size) | dict(scale_factor=(1.0, 1.0))


class TensorForward(nn.Module):
    """A model without pre- and post-processing, from images to tensors.

    Args:
        model: A model of a toolbox, which runs in the mode ``'tensor'``, or a
            module that takes an image.
        size: Height and width of the images, in pixels, for models that read
            them from the data samples.
        batch: Number of images. Default: 1.
    """

    def __init__(
        self, model: nn.Module, size: tuple[int, int], batch: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self.data_samples = [
            BaseDataElement(metainfo=image_metainfo(size))
            for _ in range(batch)
        ]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(N, C, H, W)`` to all tensors in the output of the model."""
        if isinstance(self.model, BaseModel):
            outs = self.model(image, self.data_samples, mode='tensor')
        else:
            outs = self.model(image)
        found = tree_flatten(outs)[0]
        # A tuple, since a tracer takes no list.
        return tuple(x for x in found if isinstance(x, Tensor))


def measure(
    model: nn.Module, size: Sequence[int], in_channels: int = 3
) -> Complexity:
    """Count parameters and FLOPs of a model for one image.

    For a model of a toolbox, the forward in the mode ``'tensor'`` counts: a
    classifier up to its logits; a segmentor up to the logits of its decode
    head, before they are resized to the image; a detector up to the outputs
    of its heads. The cost of a second stage depends on the number of
    proposals, and so on the weights. Auxiliary heads do not run in this mode,
    but their parameters count.

    Args:
        model: A model of a toolbox, or a module that takes
            ``(N, C, H, W)``. Its weights and mode do not change.
        size: Height and width of the input, in pixels.
        in_channels: Channels of the input. Default: 3.

    Returns:
        The counts.
    """
    height, width = size
    device = next(model.parameters()).device
    with forked_rng(0):
        image = torch.randn(1, in_channels, height, width).to(device)
    training = [m for m in model.modules() if m.training]
    # A statement of its own: train() of OpenMMLab's backbones gives None.
    model.eval()
    analyzer = FlopAnalyzer(TensorForward(model, (height, width)), image)
    analyzer.unsupported_ops_warnings(False)
    analyzer.uncalled_modules_warnings(False)
    analyzer.set_op_handle(**HANDLES, **dict.fromkeys(CHEAP))
    try:
        with torch.no_grad():
            flops = int(analyzer.total())
    finally:
        for module in training:
            module.training = True
    params = parameter_count(model)
    backbone = getattr(model, 'backbone', None) is not None
    return Complexity(
        size=(height, width),
        params=params[''],
        flops=flops,
        backbone_params=params['backbone'] if backbone else None,
        backbone_flops=(
            int(analyzer.total('model.backbone')) if backbone else None
        ),
        by_operator={k: int(v) for k, v in analyzer.by_operator().items()},
        uncounted=dict(analyzer.unsupported_ops()),
    )


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Query times key, and attention times value.

    PyTorch's formula counts a multiply-add as two.
    """
    shapes = [[1, 1, *get_shape(x)][-4:] for x in inputs[:3]]
    return Counter(attention=sdpa_flop_count(*shapes) // 2)


def _deform_conv_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """The convolution, without the sampling of its inputs."""
    # Version 2 has a mask in front of the weight.
    weight = 2 if len(inputs) == 3 else 3
    shapes = (get_shape(x) for x in (inputs[0], inputs[weight], outputs[0]))
    return Counter(deform_conv=conv_flop_count(*shapes))


# Operators that MMEngine's analyser does not know.
HANDLES = {
    'aten::scaled_dot_product_attention': _attention_flops,
    'aten::upsample_bicubic2d': elementwise_flop_counter(0, 16),
    'prim::PythonOp.DeformConv2dFunction': _deform_conv_flops,
    'prim::PythonOp.ModulatedDeformConv2dFunction': _deform_conv_flops,
}
