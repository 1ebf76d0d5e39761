"""What of a config's settings would fail, found before anything is built.

The toolbox of the config must be imported, see
:func:`~mmefficientmod.config.toolbox.import_toolbox`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISBACKENDS,
    Registry,
)

from mmefficientmod.config.class_checks import check_classes, registered
from mmefficientmod.config.nodes import dataset_dicts, type_name, walk
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.findings import Findings
from mmefficientmod.messages import did_you_mean

# The three settings of each loop; MMEngine wants all or none of them.
LOOPS = dict(
    train=('train_dataloader', 'train_cfg', 'optim_wrapper'),
    val=('val_dataloader', 'val_cfg', 'val_evaluator'),
    test=('test_dataloader', 'test_cfg', 'test_evaluator'),
)
# The loops of a run; half of another one is left out.
NEEDED = dict(train=('train', 'val'), test=('test',))
# The packages that visualizer backends write with: one of each is enough.
BACKENDS = dict(
    WandbVisBackend=('wandb',),
    TensorboardVisBackend=('tensorboard', 'tensorboardX'),
    MLflowVisBackend=('mlflow',),
    ClearMLVisBackend=('clearml',),
    NeptuneVisBackend=('neptune',),
    DVCLiveVisBackend=('dvclive',),
    AimVisBackend=('aim',),
)
# Heads of MMSegmentation that pool an image to one pixel before a batch norm.
POOLING_HEADS = (
    'APCHead', 'ASPPHead', 'DMHead', 'DepthwiseSeparableASPPHead', 'PSPHead',
    'UPerHead',
)  # fmt: skip
PATH_KEYS = ('ann_file', 'data_root', 'img_path', 'seg_map_path', 'img')


def check_settings(cfg: Config, mode: str) -> Findings:
    """Check the settings of a config that a run will need.

    Args:
        cfg: The config, with all options applied.
        mode: ``'train'`` or ``'test'``.

    Returns:
        Sentences that name key, place and remedy: errors, with which the run
        would fail or give wrong results, and warnings.
    """
    found = Findings()
    loaders = [LOOPS[loop][0] for loop in NEEDED[mode]]
    with default_scope(cfg):
        found.errors += _check_loops(cfg, mode)
        found.errors += _check_loaders(cfg, loaders)
        found.errors += _check_types(cfg, loaders)
        found.errors += _check_backends(cfg)
        if mode == 'train':
            found.errors += _check_training(cfg)
        check_classes(cfg, found, loaders)
    # Loaders often share a part of the config.
    found.errors = list(dict.fromkeys(found.errors))
    found.warnings = list(dict.fromkeys(found.warnings))
    return found


def drop_half_loops(cfg: Config, mode: str) -> list[str]:
    """Leave loops out that the run does not need and that are half there.

    A training does not need a validation that has no data.

    Args:
        cfg: The config, changed in place.
        mode: ``'train'`` or ``'test'``.

    Returns:
        A line for the log for each loop that was left out.
    """
    lines = []
    for loop, keys in LOOPS.items():
        given = [key for key in keys if cfg.get(key) is not None]
        needed = loop in NEEDED[mode] and (loop != 'val' or keys[0] in given)
        if needed or len(given) in (0, len(keys)):
            continue
        missing = [key for key in keys if key not in given]
        for key in keys:
            cfg[key] = None
        lines.append(
            f'{" and ".join(given)} left out: the config has no '
            f'{" and no ".join(missing)}'
        )
    return lines


def _check_loops(cfg: Config, mode: str) -> Iterator[str]:
    """Loops that are needed and half there."""
    for loop in NEEDED[mode]:
        keys = LOOPS[loop]
        missing = [key for key in keys if cfg.get(key) is None]
        if not missing or (loop == 'val' and len(missing) == len(keys)):
            continue
        given = [key for key in keys if key not in missing]
        text = f'the config has no {" and no ".join(missing)}'
        if given:
            text += f' beside {" and ".join(given)}'
        remedy = f'a {loop} loop needs all of {", ".join(keys)}'
        if loop == 'val':
            remedy += '; set all to None for a training without validation'
        yield f'{text}: {remedy}'


def _check_loaders(cfg: Config, loaders: Sequence[str]) -> Iterator[str]:
    for loader in loaders:
        node = cfg.get(loader)
        if not isinstance(node, dict):
            continue
        workers, size = node.get('num_workers', 0), node.get('batch_size', 1)
        if not workers and node.get('prefetch_factor') is not None:
            yield (
                f'{loader}.prefetch_factor={node["prefetch_factor"]} needs '
                f'{loader}.num_workers of 1 or more; remove it or set them'
            )
        for key, value, least in (
            ('batch_size', size, 1),
            ('num_workers', workers, 0),
        ):
            if type(value) is not int or value < least:
                yield (
                    f'{loader}.{key}={value!r} must be a whole number, '
                    f'{least} or more'
                )
        for dataset in dataset_dicts(cfg, loader):
            for part in walk(dataset):
                for key in PATH_KEYS:
                    value = part.get(key)
                    if isinstance(value, str) and not value.isprintable():
                        yield (
                            f'{loader}: {key}={value!r} has a character that '
                            'is none of a path, perhaps from a \\ in the '
                            'config; write paths with / in place of \\'
                        )


def check_batches(
    loader: Mapping[str, Any], dataset: Sized, name: str
) -> Iterator[str]:
    """Data loaders that give no batch.

    Args:
        loader: The dict of the data loader.
        dataset: The data set, built.
        name: Name of the data loader.
    """
    size, number = loader.get('batch_size', 1), get_world_size()
    if (
        loader.get('drop_last')
        and 'Infinite' not in type_name(loader.get('sampler'))
        and len(dataset) < size * number
    ):
        yield (
            f'{name}: drop_last=True leaves out an incomplete batch, and '
            f'{len(dataset)} images are no batch of {size} on each of '
            f'{number} processes, so nothing would be done; set '
            f'{name}.drop_last=False or a smaller batch_size'
        )


def _check_types(cfg: Config, loaders: Sequence[str]) -> Iterator[str]:
    """Types that are not registered."""
    for registry, place, node in _typed(cfg, loaders):
        kind = node.get('type') if isinstance(node, dict) else None
        if isinstance(kind, str) and registered(registry, kind) is None:
            known: set[str] = set()
            with registry.switch_scope_and_registry(None) as own:
                inner: Registry | None = own
                while inner is not None:
                    known.update(inner.module_dict)
                    inner = inner.parent
            yield (
                f'{place}: no {registry.name} of the type {kind!r} is '
                f'registered{did_you_mean(kind, known) or ";"} import its '
                'module by custom_imports if it is your own'
            )


def _typed(
    cfg: Config, loaders: Sequence[str]
) -> Iterator[tuple[Registry, str, Any]]:
    """The dicts with a type that the run builds, besides those of models."""
    evaluators = [x.replace('dataloader', 'evaluator') for x in loaders]
    parts = [(METRICS, key) for key in evaluators if key in cfg]
    if 'train_dataloader' in loaders:
        wrapper = cfg.get('optim_wrapper')
        if isinstance(wrapper, dict) and wrapper.get('optimizer'):
            yield OPTIMIZERS, 'optim_wrapper.optimizer', wrapper['optimizer']
        parts.append((PARAM_SCHEDULERS, 'param_scheduler'))
    for registry, key in (*parts, (HOOKS, 'custom_hooks')):
        nodes = cfg.get(key) or []
        for node in nodes if isinstance(nodes, (list, tuple)) else [nodes]:
            yield registry, key, node
    for name, node in (cfg.get('default_hooks') or {}).items():
        yield HOOKS, f'default_hooks.{name}', node
    for loader in loaders:
        for dataset in dataset_dicts(cfg, loader):
            yield DATASETS, f'{loader}.dataset', dataset
            for step in dataset.get('pipeline') or []:
                yield TRANSFORMS, f'pipeline of {loader}', step
    for backend in _backends(cfg):
        yield VISBACKENDS, 'visualizer.vis_backends', backend


def _backends(cfg: Config) -> list[Any]:
    """The backends of the visualizer."""
    visualizer = cfg.get('visualizer')
    nodes = visualizer.get('vis_backends') if visualizer else None
    return list(nodes) if isinstance(nodes, (list, tuple)) else []


def _check_backends(cfg: Config) -> Iterator[str]:
    for backend in _backends(cfg):
        packages = BACKENDS.get(type_name(backend), ())
        if packages and not any(map(importlib.util.find_spec, packages)):
            yield (
                f'visualizer.vis_backends: {type_name(backend)} needs the '
                f'package {packages[0]}, which is not installed; install it, '
                'or remove the backend'
            )


def _check_training(cfg: Config) -> Iterator[str]:
    wrapper = cfg.get('optim_wrapper')
    if type_name(wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        yield (
            'optim_wrapper.type=AmpOptimWrapper needs a GPU; without one, '
            'set optim_wrapper.type=OptimWrapper and remove loss_scale'
        )
    loader = cfg.get('train_dataloader') or {}
    if loader.get('batch_size', 1) != 1:
        return
    for head in walk(cfg.get('model')):
        norm = type_name(head.get('norm_cfg'))
        alone = norm == 'BN' or (norm == 'SyncBN' and get_world_size() == 1)
        if type_name(head) in POOLING_HEADS and alone:
            yield (
                f'train_dataloader.batch_size=1: {type_name(head)} pools an '
                'image to one pixel, and a batch norm needs more than one '
                'value of each channel; set train_dataloader.batch_size=2 or '
                'more'
            )
