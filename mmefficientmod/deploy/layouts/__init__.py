"""EfficientMod in other memory layouts, for the programs that run it.

The training module keeps ``(N, H, W, C)``, which is best for PyTorch. For an
exported file a twin is built from its folded weights, with the same outputs:

- ``today``: no twin, the module as it is.
- ``conv``: channels first, linear layers as 1x1 convolutions, the LayerNorms
  between two permutes: for ONNX Runtime at a fixed, small size.
- ``hybrid``: channels first inside the MLPs, else last, attention on tokens:
  for ONNX Runtime at any or a large size. With dynamic height and width, both
  need :func:`.dimensions.name_dimensions` on the file.
- ``conv_means``: ``conv`` with each LayerNorm written as means over the
  channels, without permutes: for CoreML.
- ``tokens``: ``(N * H * W, C)``, linear layers as products of matrices: for
  OpenVINO.
"""

from __future__ import annotations

from torch import nn

from mmefficientmod.deploy.layouts.channels_first import ChannelsFirst
from mmefficientmod.deploy.layouts.hybrid import Hybrid
from mmefficientmod.deploy.layouts.tokens import Tokens
from mmefficientmod.models.backbones.efficientmod import EfficientMod

LAYOUTS = ('today', 'conv', 'hybrid', 'conv_means', 'tokens')

# Up to this side, in pixels, channels first are best in ONNX Runtime.
SMALL = 320


def best_layout(program: str, size: tuple[int, int] | None) -> str:
    """The fastest layout.

    Args:
        program: What runs the model: ``'openvino'``, ``'ncnn'``,
            ``'coreml'``, or any other name for ONNX Runtime.
        size: Height and width of the images, in pixels; None for any size.
    """
    if program == 'openvino':
        return 'tokens'
    if program in ('ncnn', 'coreml'):
        return 'conv_means'
    return 'conv' if size and max(size) <= SMALL else 'hybrid'


def lay_out(model: nn.Module, layout: str) -> nn.Module:
    """Replace each EfficientMod of a model by a twin in another layout.

    A twin shares the weights, which are folded if they are not yet. Other
    backbones stay as they are, subclasses of EfficientMod too.

    Args:
        model: A backbone, or a model with backbones; changed in place. It
            cannot be trained afterwards.
        layout: One of :data:`LAYOUTS`.

    Returns:
        The model; its twin if the model itself is an EfficientMod.

    Raises:
        ValueError: For an unknown layout.
        RuntimeError: If a layer inside a backbone is not plain, such as a
            LoRA or a quantised layer, or a layer with a hook.
    """
    if layout not in LAYOUTS:
        raise ValueError(
            f'there is no layout {layout!r}; there are {", ".join(LAYOUTS)}'
        )
    if layout == 'today':
        return model
    if type(model) is EfficientMod:
        return _twin(model, layout)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is EfficientMod:
                setattr(module, name, _twin(child, layout))
    return model


def _twin(backbone: EfficientMod, layout: str) -> nn.Module:
    backbone.switch_to_deploy()
    if not backbone.channels_last:  # it is channels first already
        return backbone
    if layout == 'tokens':
        return Tokens(backbone).eval()
    if layout == 'hybrid':
        return Hybrid(backbone).eval()
    return ChannelsFirst(backbone, means=layout == 'conv_means').eval()
