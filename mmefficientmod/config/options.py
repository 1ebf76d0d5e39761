"""``--cfg-options``: options of the command line, put into a config."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import Runner

from mmefficientmod.config.nodes import (
    LOADERS,
    ConfigError,
    dataset_dicts,
    is_below,
    is_pair,
    replace_everywhere,
    walk_pipelines,
)
from mmefficientmod.config.schedule import (
    accumulation,
    convert_to_iterations,
    follow_accumulation,
    follow_length,
    training_length,
)
from mmefficientmod.messages import did_you_mean, shorten

# Arguments with which data sets name files below their root.
FILE_KEYS = ('ann_file', 'data_prefix', 'split')
# Keys that MMEngine reads from a config besides the arguments of its Runner.
EXTRA_KEYS = (
    'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn',
)  # fmt: skip


class OptionsAction(DictAction):
    """Reads ``KEY=VALUE``; what cannot be read ends the tool."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Put the options into the namespace.

        Args:
            parser: The parser.
            namespace: Its arguments so far, changed in place.
            values: Texts of the form ``KEY=VALUE``.
            option_string: The argument, ``--cfg-options``.
        """
        for value in values or ():
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (ValueError, AssertionError) as error:
                parser.error(
                    f'{option_string} {value}: '
                    + (
                        shorten(str(error))
                        if '=' in value
                        else 'an option is KEY=VALUE, without a space'
                    )
                )


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put options of the command line into a config.

    An option sets the value at its key. A config repeats some values in many
    places, so these options do more:

    - ``data_root`` sets the root of all data sets, see
      :func:`set_data_root`.
    - ``crop_size``, if the config has it at the top, replaces its old value
      everywhere.
    - ``scale`` sets every scale of two sides in the pipelines.
    - A new ``train_cfg.max_epochs`` or ``max_iters`` changes the length of the
      learning-rate schedule, see
      :func:`~mmefficientmod.config.schedule.follow_length`.
    - ``optim_wrapper.accumulative_counts`` changes settings that count steps
      of the optimizer, see
      :func:`~mmefficientmod.config.schedule.follow_accumulation`.

    Args:
        cfg: The config, changed in place.
        options: Keys, with dots between their parts, and new values.

    Raises:
        ConfigError: If a key or a value does not fit.
    """
    options = dict(options)
    if 'scale' in options and 'scale' not in cfg:
        set_scale(cfg, options.pop('scale'))
    if 'data_root' in options:
        set_data_root(cfg, options['data_root'])
        if 'data_root' not in cfg:
            del options['data_root']
    _check_keys(cfg, options)
    for option, value in options.items():
        _check_value(cfg, option, value)
    if 'crop_size' in options and cfg.get('crop_size'):
        size = _like(cfg.crop_size, options['crop_size'])
        replace_everywhere(cfg, cfg.crop_size, size)
        options['crop_size'] = size
    _, by_epoch = training_length(cfg)
    if by_epoch and options.get('train_cfg.max_iters'):
        convert_to_iterations(cfg, options['train_cfg.max_iters'])
    length_before = training_length(cfg)
    accumulated_before = accumulation(cfg)
    try:
        cfg.merge_from_dict(options)
    # Two options that contradict each other, as a=1 and a.b=2 do.
    except (
        AttributeError, LookupError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise ConfigError(
            f'--cfg-options does not fit: {shorten(str(error))}'
        ) from None
    follow_length(cfg, length_before, options)
    follow_accumulation(cfg, accumulated_before, options)


def set_data_root(cfg: Config, root: str) -> None:
    """Set the root of all data sets of a config.

    The old root is replaced in the whole config, since evaluators name files
    below it, too. The old root is:

    - the top-level ``data_root`` if a data set has a path there; data sets
      elsewhere keep their roots;
    - otherwise the root that all data sets have, or that root of a data set
      which contains the others.

    If no data set has a root, each gets the new one: its paths were relative
    to the working directory and are now relative to the new root.

    Args:
        cfg: The config, changed in place.
        root: Path of the new root.

    Raises:
        ConfigError: If the root is not a path, if no data set has files, or if
            there are several roots and none contains the others.
    """
    option = f'--cfg-options data_root={root}'
    if not isinstance(root, str) or not root:
        raise ConfigError(
            f'{option} is not the path of a folder; if the name of the folder '
            'is a number, put ./ in front, as in data_root=./2024'
        )
    datasets = [
        dataset
        for loader in LOADERS
        for dataset in dataset_dicts(cfg, loader)
        if any(dataset.get(key) for key in ('data_root', *FILE_KEYS))
    ]
    if not datasets:
        raise ConfigError(
            f'{option}: the config has no data set with files in a folder'
        )
    roots = {_without_slash(d.get('data_root') or '') for d in datasets}
    top = cfg.get('data_root')
    if top and _names_path_below(datasets, top):
        replace_everywhere(cfg, top, root)
    elif roots == {''}:
        _set_first_root(cfg, datasets, root)
    else:
        parents = [
            r for r in roots if r and all(is_below(x, r) for x in roots)
        ]
        if not parents:
            names = [r or 'the working directory' for r in sorted(roots)]
            raise ConfigError(
                f'{option}: the data sets have several roots, '
                f'{", ".join(names)}; set each of them, as in '
                'train_dataloader.dataset.data_root=...'
            )
        replace_everywhere(cfg, parents[0], root)


def _set_first_root(
    cfg: Config, datasets: Sequence[ConfigDict], root: str
) -> None:
    """Give a root to data sets that have none."""
    for dataset in datasets:
        dataset['data_root'] = root
        file = dataset.get('ann_file')
        if isinstance(file, str) and file and not file.startswith('/'):
            # The metric may read the same file.
            new = f'{_without_slash(root)}/{file}'
            for evaluator in ('val_evaluator', 'test_evaluator'):
                replace_everywhere(cfg.get(evaluator), file, new)


def _names_path_below(node: Any, folder: str) -> bool:
    """Whether a string in dicts and lists is a path in a folder."""
    if isinstance(node, str):
        return bool(node) and is_below(node, folder)
    if isinstance(node, Mapping):
        node = list(node.values())
    return isinstance(node, (list, tuple)) and any(
        _names_path_below(value, folder) for value in node
    )


def _without_slash(path: str) -> str:
    return path.rstrip('/') or path


def set_scale(cfg: Config, scale: Any) -> None:
    """Set every scale of two sides in the pipelines.

    Args:
        cfg: The config, changed in place.
        scale: Longest and shortest side, in pixels.

    Raises:
        ConfigError: If it is not a pair, or no step has such a scale.
    """
    if not is_pair(scale):
        raise ConfigError(
            f'--cfg-options scale={scale} must be two sides, such as '
            'scale=1333,800'
        )
    steps = [x for x in walk_pipelines(cfg) if is_pair(x.get('scale'))]
    if not steps:
        raise ConfigError(
            '--cfg-options scale: no step of the pipelines has a scale of '
            'two sides'
        )
    for step in steps:
        step['scale'] = tuple(scale)


def _like(old: Any, new: Any) -> Any:
    """A new size in the form of the old one.

    Where the old size is a pair, one number stands for both sides, and a pair
    has the same type: the command line makes lists, some transforms require
    tuples.
    """
    if isinstance(old, (list, tuple)):
        if isinstance(new, int):
            new = [new] * len(old)
        if isinstance(new, (list, tuple)):
            return type(old)(new)
    return new


def _check_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse a top-level key that nothing would read."""
    known = {*cfg, *inspect.signature(Runner).parameters, *EXTRA_KEYS}
    for option in options:
        top = option.split('.')[0]
        if top in known:
            continue
        raise ConfigError(
            f'--cfg-options {option}: the config has no {top!r}'
            f'{did_you_mean(top, known)}'
        )


def _check_value(cfg: Config, option: str, value: Any) -> None:
    """Refuse a value that cannot be what stands at its place in the config.

    Args:
        cfg: The config.
        option: The key, with dots between its parts.
        value: The new value.

    Raises:
        ConfigError: If a part of the key is in a number or text, or beyond
            the end of a list; if another kind of value would replace dicts or
            a list of classes, a text a number, or a number a text.
    """
    old: Any = cfg
    parts = option.split('.')
    for number, part in enumerate(parts):
        place = '.'.join(parts[:number])
        if isinstance(old, (Mapping, Config)):
            if part not in old:
                return
            old = old[part]
        elif isinstance(old, (list, tuple)):
            if not part.isdigit() or int(part) >= len(old):
                raise ConfigError(
                    f'--cfg-options {option}: {place} has {len(old)} entries, '
                    f'which are numbered from 0; {part!r} is none of them'
                )
            old = old[int(part)]
        else:
            raise ConfigError(
                f'--cfg-options {option}: {place} is {old!r} and has no keys'
            )
    given = f'--cfg-options {option}={value}'
    if isinstance(value, (Mapping, list, tuple)) or value is None:
        return
    if isinstance(old, Mapping) and old:
        raise ConfigError(
            f'{given}: {option} is a dict; name a key in it, such as '
            f'{option}.{next(iter(old))}'
        )
    if isinstance(old, (list, tuple)):
        for index, entry in enumerate(old):
            if isinstance(entry, Mapping):
                raise ConfigError(
                    f'{given}: {option} is a list of dicts; name a key in '
                    f'one of them, such as {option}.{index}.type'
                )
        if parts[-1] == 'classes':
            raise ConfigError(
                f'{given}: the names of classes are a list, as in '
                f"'{option}=[{value}]'"
            )
    # `dynamic` is another value for the number of a loss scale.
    if parts[-1] == 'loss_scale' or isinstance(old, bool):
        return
    if isinstance(old, (int, float)) and isinstance(value, str):
        raise ConfigError(f'{given}: a number is needed, as {old!r} is one')
    if isinstance(old, str) and _is_number(value):
        raise ConfigError(
            f'{given}: a text is needed, as {old!r} is one; if it is the '
            f'name of a folder or file, put ./ in front, as in ./{value}'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
