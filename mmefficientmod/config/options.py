"""``--cfg-options``: settings of the command line put into a config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmefficientmod.config.nodes import (
    ConfigError,
    is_pair,
    replace_everywhere,
    walk_pipelines,
)
from mmefficientmod.config.schedule import (
    _length,
    accumulation,
    count_iterations,
    follow_accumulation,
    scale_schedule,
)
from mmefficientmod.messages import did_you_mean

# What MMEngine reads of a config besides the arguments of its Runner.
EXTRA_KEYS = (
    'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn',
)  # fmt: skip


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put options of the command line into a config.

    Three things that a stock config repeats in many places may be given once:
    a top-level ``data_root`` or ``crop_size`` replaces its old value wherever
    that stands, ``scale`` is put into every pipeline that resizes to a scale
    of two sides, and a new ``train_cfg.max_iters`` or ``max_epochs`` scales
    the part of the learning-rate schedule that counts the same, unless the
    options set that too. With ``optim_wrapper.accumulative_counts``, what
    follows the steps of the optimizer goes on to do so: see
    :func:`follow_accumulation`.

    Args:
        cfg: The config, changed in place.
        options: Dotted keys and their new values.

    Raises:
        ConfigError: If a key does not fit.
    """
    options = dict(options)
    if 'scale' in options and 'scale' not in cfg:
        _set_scale(cfg, options.pop('scale'))
    _check_keys(cfg, options)
    for key in ('data_root', 'crop_size'):
        if key in options and cfg.get(key):
            replace_everywhere(cfg, cfg[key], _like(cfg[key], options[key]))
    length, by_epoch = _length(cfg)
    if by_epoch and length and options.get('train_cfg.max_iters'):
        count_iterations(cfg, options['train_cfg.max_iters'])
        length, by_epoch = _length(cfg)
    accumulated = accumulation(cfg)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f'--cfg-options does not fit: {error}') from None
    new_length, new_by_epoch = _length(cfg)
    if (
        length
        and new_length != length
        and new_by_epoch == by_epoch
        and not any(key.startswith('param_scheduler') for key in options)
    ):
        factor = new_length / length
        if by_epoch:
            scale_schedule(cfg, epochs=factor)
        else:
            scale_schedule(cfg, iters=factor)
    if accumulation(cfg) != accumulated:
        follow_accumulation(cfg, accumulation(cfg) / accumulated, options)


def _set_scale(cfg: Config, scale: Any) -> None:
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
    """A side given for a size that is a pair means both sides.

    Two, which options make a list of, are what the pair was.
    """
    if isinstance(old, (list, tuple)):
        if isinstance(new, int):
            new = [new] * len(old)
        if isinstance(new, (list, tuple)):
            return type(old)(new)
    return new


def _check_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse a top-level key that nothing reads, which would do nothing."""
    known = {*cfg, *inspect.signature(Runner).parameters, *EXTRA_KEYS}
    for option in options:
        top = option.split('.')[0]
        if top in known:
            continue
        raise ConfigError(
            f'--cfg-options {option}: the config has no {top!r}'
            f'{did_you_mean(top, known)}'
        )
