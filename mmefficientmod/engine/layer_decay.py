"""Layer-wise learning-rate decay for any model whose backbone can count."""

from __future__ import annotations

from typing import Any

from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmefficientmod.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(
    LearningRateDecayOptimWrapperConstructor
):
    """MMPretrain's constructor, also for detectors and segmentors.

    It wants ``get_layer_depth`` of the model, which only classifiers have;
    here the backbone in the model is asked. ``paramwise_cfg`` takes what
    MMPretrain's takes: ``layer_decay_rate``, ``flat_decay_mult``,
    ``norm_decay_mult``, ``bias_decay_mult``, ``custom_keys``.

    Raises:
        TypeError: If no module of the model has ``get_layer_depth``.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Any = None,
        **kwargs: Any,
    ) -> None:
        """Add the parameters of a module, each at the rate of its layer."""
        if get_layer_depth is None:
            name, backbone = next(
                (
                    (name, part)
                    for name, part in module.named_modules()
                    if name and hasattr(part, 'get_layer_depth')
                ),
                ('', module),
            )
            if not hasattr(backbone, 'get_layer_depth'):
                raise TypeError(
                    'no backbone of this model says how deep its layers lie '
                    '(get_layer_depth), which layer-wise decay needs'
                )

            def get_layer_depth(param_name: str) -> tuple[int, int]:
                return backbone.get_layer_depth(param_name, f'{name}.')

        super().add_params(
            params, module, prefix, get_layer_depth=get_layer_depth
        )
