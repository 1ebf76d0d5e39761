"""The graph of a model, by what the model does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.graph import BackboneGraph, ExportGraph
from mmefficientmod.deploy.segmentor import LOGITS, SegmentorGraph

PARTS = ('model', 'backbone')


def build_graph(
    model: nn.Module, scope: str, part: str = 'model', output: str = LOGITS
) -> ExportGraph:
    """The graph of a model.

    Args:
        model: A model of a toolbox, in evaluation mode.
        scope: Name of its toolbox.
        part: ``'model'``, or ``'backbone'`` for the backbone alone. Default:
            the whole model.
        output: Of a segmentor, ``'logits'`` or ``'labels'``. Default:
            logits.

    Raises:
        ConfigError: If the model cannot be exported.
    """
    if part == 'backbone':
        backbone = getattr(model, 'backbone', None)
        if backbone is None:
            raise ConfigError(
                f'{type(model).__name__} has no part called backbone'
            )
        return BackboneGraph(backbone, count_levels(backbone))
    # Each import needs the toolbox.
    if scope == 'mmseg':
        return SegmentorGraph(model, output)
    if scope == 'mmpretrain':
        from mmefficientmod.deploy.classifier import ClassifierGraph

        return ClassifierGraph(model)
    from mmefficientmod.deploy.detection import DetectorGraph

    return DetectorGraph(model)


def count_levels(backbone: nn.Module) -> int:
    """Number of levels of a backbone.

    Raises:
        ConfigError: If it does not return tensors of a pyramid.
    """
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 224, 224))
    if not isinstance(levels, (tuple, list)) or not all(
        isinstance(x, Tensor) for x in levels
    ):
        raise ConfigError(
            f'the backbone {type(backbone).__name__} does not return a tuple '
            'of tensors, one for each level, so that it cannot be exported'
        )
    return len(levels)
