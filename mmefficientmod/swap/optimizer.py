"""Layer-wise settings of the optimizer, fitted to a new backbone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import class_of, parameter_names

LAYER_DECAY = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


def fit_optimizer(
    cfg: Config, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Keep layer-wise settings that find something, report the others."""
    wrapper = cfg.get('optim_wrapper') or {}
    paramwise = wrapper.get('paramwise_cfg')
    if not paramwise:
        return
    constructor = wrapper.get('constructor')
    if type_name(dict(type=constructor)) in LAYER_DECAY:
        _fit_layer_decay(wrapper, new)
        paramwise = wrapper.paramwise_cfg
    keys = paramwise.get('custom_keys')
    if not keys:
        return
    names, gone = parameter_names(new), parameter_names(old)
    for key in list(keys):
        found = any(key in name for name in names)
        # A key that the old backbone did not have either is for the heads.
        theirs = key.startswith('backbone.') or any(key in n for n in gone)
        if theirs and not found:
            del keys[key]
            log_change(
                f'custom_keys[{key!r}] is left out: no parameter of '
                f'{type_name(new)} is called so'
            )


def _fit_layer_decay(wrapper: ConfigDict, new: Mapping[str, Any]) -> None:
    """Have the layers counted by asking the backbone for them."""
    paramwise = dict(wrapper.paramwise_cfg)
    rate = paramwise.pop('decay_rate', None)
    rate = paramwise.pop('layer_decay_rate', rate)
    layers = paramwise.pop('num_layers', None)
    kind = paramwise.pop('decay_type', None)
    if kind is not None or layers is not None:
        # Those of MMDetection and MMSegmentation do this unasked.
        paramwise.setdefault('flat_decay_mult', 0.0)
    if not hasattr(class_of(new), 'get_layer_depth'):
        wrapper.constructor = 'DefaultOptimWrapperConstructor'
        wrapper.paramwise_cfg = ConfigDict(paramwise)
        log_change(
            f'{type_name(new)} cannot say how deep a layer lies '
            f'(get_layer_depth): the learning rate, which decayed by {rate} '
            'a layer, is now the same in all',
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
        f'the learning rate decays by {rate} a layer, as {type_name(new)} '
        'counts its layers'
        + (', and no longer by stages' if kind == 'stage_wise' else '')
    )
