"""The scope ``mmefficientmod``: a child of MMEngine's root registries.

MMEngine imports this module by itself when a config names a type with the
prefix ``mmefficientmod.``, whatever toolbox the config belongs to.
"""

from importlib import import_module

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS,
)
from mmengine.registry import Registry

__all__ = ['HOOKS', 'METRICS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS']

# Models that a toolbox is needed for, which may not be installed.
DISTILL = 'mmefficientmod.models.distill'
NEED_A_TOOLBOX = {
    'DistilledClassifier': f'{DISTILL}.classifier',
    'DistilledSegmentor': f'{DISTILL}.segmentor',
}


class ModelRegistry(Registry):
    """A registry that imports what needs a toolbox when it is asked for."""

    def get(self, key: str) -> type | None:
        """The class of that name."""
        name = key.removeprefix(f'{self.scope}.')
        if name in NEED_A_TOOLBOX:
            import_module(NEED_A_TOOLBOX[name])
        return super().get(key)


MODELS = ModelRegistry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmefficientmod',
    locations=['mmefficientmod.models'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmefficientmod',
    locations=[
        'mmefficientmod.engine.hooks',
        'mmefficientmod.benchmark.training.hook',
    ],
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
    locations=['mmefficientmod.engine.layer_decay'],
)
