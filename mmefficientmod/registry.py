"""The scope ``mmefficientmod``: children of MMEngine's root registries.

MMEngine imports this module when a config names a type with the prefix
``mmefficientmod.``, whichever toolbox the config belongs to. A registry
imports its ``locations`` when it is first asked for a type.
"""

from __future__ import annotations

from importlib import import_module

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

__all__ = [
    'DATASETS',
    'FUNCTIONS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'STRATEGIES',
]

SCOPE = 'mmefficientmod'
# Models that need a toolbox, which may not be installed.
DISTILL = 'mmefficientmod.models.distill'
EXPORTED = 'mmefficientmod.deploy.exported'
NEED_A_TOOLBOX = {
    'DistilledClassifier': f'{DISTILL}.classifier',
    'DistilledSegmentor': f'{DISTILL}.segmentor',
    'ExportedClassifier': f'{EXPORTED}.classifier',
    'ExportedDetector': f'{EXPORTED}.detector',
    'ExportedSegmentor': f'{EXPORTED}.segmentor',
}
# Imports PyTorch's FSDP and MMEngine's strategies, which only FSDP needs.
FSDP = 'mmefficientmod.engine.fsdp'


class ModelRegistry(Registry):
    """A registry that imports some models only when their names are asked for.

    They need a toolbox. Importing them with the other models would make the
    toolbox a requirement of the package.
    """

    def get(self, key: str) -> type | None:
        """The class of a name, None if there is none.

        Args:
            key: The name, with or without the scope.
        """
        name = key.removeprefix(f'{self.scope}.')
        if name in NEED_A_TOOLBOX:
            import_module(NEED_A_TOOLBOX[name])
        return super().get(key)


MODELS = ModelRegistry(
    'model',
    parent=mmengine_registry.MODELS,
    scope=SCOPE,
    locations=['mmefficientmod.models'],
)
DATASETS = Registry(
    'dataset',
    parent=mmengine_registry.DATASETS,
    scope=SCOPE,
    locations=['mmefficientmod.datasets.own.pairs'],
)
HOOKS = Registry(
    'hook',
    parent=mmengine_registry.HOOKS,
    scope=SCOPE,
    locations=[
        'mmefficientmod.engine.hooks',
        'mmefficientmod.engine.seeding',
        'mmefficientmod.benchmark.training.hook',
    ],
)
METRICS = Registry(
    'metric',
    parent=mmengine_registry.METRICS,
    scope=SCOPE,
    locations=['mmefficientmod.evaluation'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['mmefficientmod.engine.layer_decay'],
)
STRATEGIES = Registry(
    'strategy',
    parent=mmengine_registry.STRATEGIES,
    scope=SCOPE,
    locations=[FSDP],
)
FUNCTIONS = Registry(
    'function',
    parent=mmengine_registry.FUNCTIONS,
    scope=SCOPE,
    locations=[FSDP],
)
