"""The length of a training, its learning-rate schedule and accumulation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmefficientmod.config.nodes import ConfigError, type_name


def _length(cfg: Config) -> tuple[int, bool]:
    train_cfg = cfg.get('train_cfg') or {}
    if train_cfg.get('max_iters'):
        return train_cfg['max_iters'], False
    return train_cfg.get('max_epochs') or 0, True


def accumulation(cfg: Config) -> int:
    """Iterations for each step of the optimizer.

    Raises:
        ConfigError: If it is no such number.
    """
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if not isinstance(counts, int) or counts < 1:
        raise ConfigError(
            f'optim_wrapper.accumulative_counts={counts} is no number of '
            'iterations for each step of the optimizer, 1 or more'
        )
    return counts


def scale_schedule(
    cfg: Config, epochs: float = 1.0, iters: float = 1.0
) -> None:
    """Stretch or shrink the learning-rate schedule.

    A part of it keeps at least two steps: in MMEngine, a warm-up of one step
    would stay at its start for ever.

    Args:
        cfg: The config, changed in place.
        epochs: Factor for what counts epochs.
        iters: Factor for what counts iterations.
    """
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    ends: dict[tuple[bool, int], int] = {}
    for scheduler in schedulers:
        by_epoch = scheduler.get('by_epoch', True)
        factor = epochs if by_epoch else iters
        if factor == 1:
            continue
        begin, end = scheduler.get('begin'), scheduler.get('end')
        for key in ('begin', 'T_max', 'step_size', 'total_steps'):
            if scheduler.get(key):
                scheduler[key] = max(1, round(scheduler[key] * factor))
        # One that follows another begins where that now ends.
        if (by_epoch, begin) in ends:
            scheduler['begin'] = ends[by_epoch, begin]
        if end:
            least = scheduler.get('begin', 0) + 2
            scheduler['end'] = max(least, round(end * factor))
            ends[by_epoch, end] = scheduler['end']
        if 'milestones' in scheduler:
            scheduler['milestones'] = [
                max(1, round(m * factor)) for m in scheduler['milestones']
            ]


def count_iterations(cfg: Config, max_iters: int) -> None:
    """Make a config count iterations where it counts epochs.

    The learning rate falls at the same shares of the training. Validation
    and checkpoint come at the end.

    Args:
        cfg: The config, changed in place.
        max_iters: Length of the training.
    """
    scale_schedule(cfg, epochs=max_iters / cfg.train_cfg.max_epochs)
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    for scheduler in schedulers:
        scheduler['by_epoch'] = False
        scheduler.pop('convert_to_iter_based', None)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop',
        max_iters=max_iters,
        val_interval=max_iters,
    )
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=False, interval=max_iters
    )
    hooks.setdefault('logger', dict(type='LoggerHook'))[
        'log_metric_by_epoch'
    ] = False
    cfg.setdefault('log_processor', dict(type='LogProcessor'))['by_epoch'] = (
        False
    )


def follow_accumulation(
    cfg: Config, factor: float, options: Mapping[str, Any]
) -> None:
    """Have what goes with the steps of the optimizer follow accumulation.

    MMEngine counts iterations, of which a step now takes ``factor`` times as
    many. An average of the weights is updated once a step. In a training that
    counts epochs, a warm-up that counts iterations takes as many steps as
    before. In one that counts iterations, their number stays; a warning says
    so where the options do not set it.

    Args:
        cfg: The config, changed in place.
        factor: New iterations a step, by the old ones.
        options: Those of the command line; what they set is left alone.
    """

    def is_set(key: str) -> bool:
        return any(option.startswith(key) for option in options)

    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'EMAHook' and not is_set('custom_hooks'):
            interval = hook.get('interval', 1) * factor
            hook['interval'] = max(1, round(interval))
    length, by_epoch = _length(cfg)
    if by_epoch and not is_set('param_scheduler'):
        scale_schedule(cfg, iters=factor)
    elif length and not by_epoch and not is_set('train_cfg.max_iters'):
        print_log(
            f'{length} iterations are {length // accumulation(cfg)} steps of '
            'the optimizer, since gradients are accumulated; '
            f'train_cfg.max_iters={round(length * factor)} has as many steps '
            'as before',
            logger='current',
            level=logging.WARNING,
        )
