"""Settings of the optimizer for single layers, fitted to a new backbone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import class_of, parameter_names

# Constructors of the toolboxes that decay the learning rate by layer. Those
# of MMDetection and MMSegmentation know the layers of few backbones.
LAYER_DECAY = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


def fit_optimizer(
    cfg: Config, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Keep settings for single layers that fit the new backbone.

    Layer-wise decay of the learning rate asks the new backbone for its
    layers. ``custom_keys`` that no parameter has any more are removed and
    logged.

    Args:
        cfg: The config, changed in place.
        old: The dict of the old backbone.
        new: The dict of the new backbone.

    Raises:
        ConfigError: If the config decays the learning rate by layer and
            MMPretrain is not installed.
    """
    wrapper = cfg.get('optim_wrapper') or ConfigDict()
    if not wrapper.get('paramwise_cfg'):
        return
    if type_name(dict(type=wrapper.get('constructor'))) in LAYER_DECAY:
        _fit_layer_decay(wrapper, new)
    keys = wrapper.paramwise_cfg.get('custom_keys')
    if keys:
        _remove_unused_keys(keys, old, new)


def _remove_unused_keys(
    keys: ConfigDict, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    old_names, new_names = parameter_names(old), parameter_names(new)
    for key in list(keys):
        # A key that matches nothing in the old backbone is for neck or heads.
        for_backbone = key.startswith('backbone.') or any(
            key in name for name in old_names
        )
        if for_backbone and not any(key in name for name in new_names):
            del keys[key]
            log_change(
                f'custom_keys[{key!r}] is left out: no parameter of '
                f'{type_name(new)} has this in its name'
            )


def _fit_layer_decay(wrapper: ConfigDict, new: Mapping[str, Any]) -> None:
    """Use a constructor that asks the backbone for the depth of its layers."""
    paramwise = dict(wrapper.paramwise_cfg)
    rate = paramwise.pop('decay_rate', None)
    rate = paramwise.pop('layer_decay_rate', rate)
    layers = paramwise.pop('num_layers', None)
    decay_type = paramwise.pop('decay_type', None)
    if decay_type is not None or layers is not None:
        # The constructors of MMDetection and MMSegmentation, which have these
        # keys, do not decay the weights of norms and biases.
        paramwise.setdefault('flat_decay_mult', 0.0)
    if not hasattr(class_of(new), 'get_layer_depth'):
        wrapper.constructor = 'DefaultOptimWrapperConstructor'
        wrapper.paramwise_cfg = ConfigDict(paramwise)
        log_change(
            f'{type_name(new)} does not say how deep a layer is '
            f'(get_layer_depth): the learning rate, which decayed by {rate} '
            'with each layer, is now the same in all',
            logging.WARNING,
        )
        return
    if importlib.util.find_spec('mmpretrain') is None:
        raise ConfigError(
            'the learning rate of this config decays with the layers, which '
            'needs mmpretrain for another backbone; it is not installed'
        )
    wrapper.constructor = 'mmefficientmod.LayerDecayOptimWrapperConstructor'
    wrapper.paramwise_cfg = ConfigDict(paramwise, layer_decay_rate=rate)
    log_change(
        f'the learning rate decays by {rate} with each layer, as '
        f'{type_name(new)} counts its layers'
        + (', and no longer by stages' if decay_type == 'stage_wise' else '')
    )
