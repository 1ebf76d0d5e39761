"""The scope ``mmefficientmod``: a child of MMEngine's root registries.

MMEngine imports this module by itself when a config names a type with the
prefix ``mmefficientmod.``, whatever toolbox the config belongs to.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS,
)
from mmengine.registry import Registry

__all__ = ['HOOKS', 'METRICS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS']

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmefficientmod',
    locations=['mmefficientmod.models'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmefficientmod',
    locations=['mmefficientmod.deploy'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmefficientmod',
    locations=['mmefficientmod.evaluation'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_CONSTRUCTORS,
    scope='mmefficientmod',
    locations=['mmefficientmod.engine'],
)
