"""Layer-wise learning-rate decay for classifiers, detectors and segmentors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(
    LearningRateDecayOptimWrapperConstructor
):
    """MMPretrain's constructor, for detectors and segmentors too.

    MMPretrain's asks the model for ``get_layer_depth``, a method that only
    its classifiers have. This one asks the first module in the model that has
    the method: the backbone. ``paramwise_cfg`` takes what MMPretrain's takes:
    ``layer_decay_rate``, ``flat_decay_mult``, ``norm_decay_mult``,
    ``bias_decay_mult``, ``custom_keys``.

    Raises:
        ConfigError: If no module of the model has ``get_layer_depth``.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable[[str], tuple[int, int]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a group for each parameter, with the rate of its layer.

        Args:
            params: Groups of the optimizer; extended in place.
            module: The module whose parameters are added.
            prefix: Name of the module in the model.
            get_layer_depth: Gives the depth of a parameter and the number of
                layers. Default: the method of the backbone.
            **kwargs: Arguments that MMEngine passes; not used.
        """
        if get_layer_depth is None:
            get_layer_depth = _layer_depth_of_backbone(module)
        super().add_params(
            params, module, prefix, get_layer_depth=get_layer_depth
        )


def _layer_depth_of_backbone(
    model: nn.Module,
) -> Callable[[str], tuple[int, int]]:
    for name, module in model.named_modules():
        method = getattr(module, 'get_layer_depth', None)
        # A classifier of MMPretrain has the method, too, and only calls that
        # of its backbone.
        if method is not None and module is not model:
            return partial(method, prefix=f'{name}.')
    method = getattr(model, 'get_layer_depth', None)
    if method is not None:
        return method
    raise ConfigError(
        'no module of this model has a method get_layer_depth, which tells '
        'the depth of each layer; layer-wise decay of the learning rate '
        'needs it'
    )
