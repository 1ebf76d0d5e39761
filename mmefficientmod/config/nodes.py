"""The nodes of a config: dicts with a ``type``, found and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict


class ConfigError(ValueError):
    """A config cannot be found or an option does not fit it."""


def type_name(node: Any) -> str:
    """Name of a node's type, given as text or class, without a scope."""
    kind = node.get('type') if isinstance(node, Mapping) else None
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1]


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts in a node, the outer ones first."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from walk(value)


def walk_pipelines(cfg: Config) -> Iterator[Any]:
    """Every dict in the data loaders and pipelines of a config, once."""
    parts = [
        value
        for key, value in cfg.items()
        if key.endswith(('_dataloader', '_pipeline'))
    ]
    # A pipeline may stand in several loaders as one object.
    yield from {id(node): node for node in walk(parts)}.values()


def is_pair(value: Any) -> bool:
    """Whether a value is a list or tuple of two."""
    return isinstance(value, (list, tuple)) and len(value) == 2


def replace_everywhere(cfg: Any, old: Any, new: Any) -> Any:
    """Replace a value, or the beginning of a path, in a whole config.

    Args:
        cfg: Config, dict, list or value; containers are changed in place.
        old: What to look for; a string is also found as a folder at the
            beginning of a path.
        new: What to put there.

    Returns:
        The value with the replacement made.
    """
    if isinstance(cfg, (Mapping, Config)):
        for key in list(cfg):
            cfg[key] = replace_everywhere(cfg[key], old, new)
    elif isinstance(old, str) and isinstance(cfg, str):
        if cfg.rstrip('/') == old.rstrip('/'):
            return new
        if cfg.startswith(old.rstrip('/') + '/'):
            return new.rstrip('/') + cfg[len(old.rstrip('/')) :]
    elif isinstance(cfg, (list, tuple)):
        if isinstance(old, (list, tuple)) and list(cfg) == list(old):
            return new
        return type(cfg)(replace_everywhere(v, old, new) for v in cfg)
    return cfg


def find_model(cfg: Config) -> ConfigDict:
    """The part of ``cfg.model`` that has the backbone.

    Raises:
        ConfigError: If none has.
    """
    model = cfg.get('model') or {}
    outer = model
    # Wrappers for semi-supervised learning and tracking hold a detector.
    while 'backbone' not in model and isinstance(
        model.get('detector'), Mapping
    ):
        model = model['detector']
    if type_name(model.get('backbone')):
        return model
    kind = outer.get('type')
    raise ConfigError(
        f'{kind} has no `backbone` in its config that could be replaced: it '
        'brings its own image encoder'
        if kind
        else 'the config has no model'
    )


def dataset_dicts(cfg: Config, loader: str) -> Iterator[dict[str, Any]]:
    """The innermost data set dicts of a data loader, without wrappers.

    Args:
        cfg: The config.
        loader: ``'train_dataloader'`` or another.
    """
    todo = [(cfg.get(loader) or {}).get('dataset')]
    while todo:
        dataset = todo.pop()
        if not isinstance(dataset, Mapping):
            continue
        if 'dataset' in dataset:
            todo.append(dataset['dataset'])
        elif 'datasets' in dataset:
            todo.extend(dataset['datasets'])
        else:
            yield dataset


def add_hook(cfg: Config, **hook: Any) -> None:
    """Give a run one hook more than its config has."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
