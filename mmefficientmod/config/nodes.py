"""Reading and changing the nodes of a config: dicts with a ``type``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mmengine.config import Config, ConfigDict

# The data loaders of a config.
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class ConfigError(ValueError):
    """A config cannot be found, or an option does not fit it."""


def type_name(node: Any) -> str:
    """Name of the type of a config's dict, without the toolbox's prefix.

    Args:
        node: A dict whose ``type`` is a name, such as ``'mmdet.ResNet'``, or
            a class.

    Returns:
        The name, such as ``'ResNet'``; empty for any other value.
    """
    kind = node.get('type') if isinstance(node, Mapping) else None
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1]


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts in a dict, list or tuple, each before those inside it."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from walk(value)


def walk_pipelines(cfg: Config) -> Iterator[ConfigDict]:
    """Every dict in the data loaders and pipelines of a config, once."""
    parts = [
        value
        for key, value in cfg.items()
        if key.endswith(('_dataloader', '_pipeline'))
    ]
    # Several loaders may share one pipeline object.
    yield from {id(node): node for node in walk(parts)}.values()


def dataset_dicts(cfg: Config, loader: str) -> Iterator[ConfigDict]:
    """The dicts of the data sets of a data loader, without their wrappers.

    Args:
        cfg: The config.
        loader: One of :data:`LOADERS`; it may be missing.
    """
    todo = [(cfg.get(loader) or {}).get('dataset')]
    while todo:
        dataset = todo.pop()
        if not isinstance(dataset, dict):
            continue
        if 'dataset' in dataset:
            todo.append(dataset['dataset'])
        elif 'datasets' in dataset:
            todo.extend(dataset['datasets'])
        else:
            yield dataset


def find_model(cfg: Config) -> ConfigDict:
    """The dict in ``cfg.model`` that has the backbone.

    Wrappers, for semi-supervised learning, tracking or distillation, have a
    detector, segmentor or student inside. Teachers are left alone.

    Raises:
        ConfigError: If no dict has a backbone, or several have one.
    """
    model = cfg.get('model') or {}
    found = dict(_models_inside(model, 'model'))
    if len(found) == 1:
        return next(iter(found.values()))
    kind = type_name(model)
    if found:
        raise ConfigError(
            f'the config of {kind} has several models with a backbone, '
            f'{", ".join(found)}, and which one is meant is not known; write '
            'the new backbone into the config itself'
        )
    raise ConfigError(
        f'the config of {kind} has no `backbone` that could be replaced'
        if kind
        else 'the config has no model'
    )


def _models_inside(node: Any, path: str) -> Iterator[tuple[str, ConfigDict]]:
    """The outermost dicts with a backbone, except teachers, by their place."""
    if isinstance(node, (list, tuple)):
        for index, entry in enumerate(node):
            yield from _models_inside(entry, f'{path}.{index}')
    if not isinstance(node, Mapping):
        return
    if type_name(node.get('backbone')):
        yield path, node
        return
    for key, value in node.items():
        if 'teacher' not in str(key):
            yield from _models_inside(value, f'{path}.{key}')


def is_pair(value: Any) -> bool:
    """Whether a value is a list or tuple of two."""
    return isinstance(value, (list, tuple)) and len(value) == 2


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or begins with it.

    Args:
        path: A path, with ``/`` between its parts.
        folder: The folder; a ``/`` at its end makes no difference.
    """
    return f'{path}/'.startswith(folder.rstrip('/') + '/')


def replace_everywhere(cfg: Any, old: Any, new: Any) -> Any:
    """Replace a value, or the beginning of paths, in a whole config.

    Args:
        cfg: Config, dict, list or value; dicts are changed in place.
        old: The value to replace. Paths that begin with a folder ``old``
            begin with ``new`` afterwards.
        new: The new value.

    Returns:
        The config or value after the replacement.
    """
    if isinstance(cfg, (MutableMapping, Config)):
        for key in list(cfg):
            cfg[key] = replace_everywhere(cfg[key], old, new)
    elif isinstance(old, str) and isinstance(cfg, str):
        if cfg and cfg.rstrip('/') == old.rstrip('/'):
            return new
        if cfg and is_below(cfg, old):
            return new.rstrip('/') + cfg[len(old.rstrip('/')) :]
    elif isinstance(cfg, (list, tuple)):
        if isinstance(old, (list, tuple)) and list(cfg) == list(old):
            return new
        return type(cfg)(replace_everywhere(v, old, new) for v in cfg)
    return cfg


def add_hook(cfg: Config, **hook: Any) -> None:
    """Add a hook to ``custom_hooks``.

    Args:
        cfg: The config, changed in place.
        **hook: The dict of the hook, with its ``type``.
    """
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
