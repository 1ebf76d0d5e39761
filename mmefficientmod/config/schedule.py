"""Length, learning-rate schedule and accumulation of a training.

MMEngine counts iterations or epochs. With accumulated gradients, a step of
the optimizer takes several iterations. The functions here change what depends
on these counts when one of them changes, and say by which total batch the
learning rate is scaled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmefficientmod.config.nodes import ConfigError, type_name


def training_length(cfg: Config) -> tuple[int, bool]:
    """Length of a training, and whether that counts epochs.

    Returns:
        ``(max_iters, False)`` if the config has it, otherwise
        ``(max_epochs, True)``; a length of 0 if it has neither.
    """
    train_cfg = cfg.get('train_cfg') or {}
    if train_cfg.get('max_iters'):
        return train_cfg['max_iters'], False
    return train_cfg.get('max_epochs') or 0, True


def follow_length(
    cfg: Config, before: tuple[int, bool], options: Iterable[str]
) -> None:
    """Make the learning-rate schedule as long as the new training.

    The parts of the schedule that count in the unit of the length, iterations
    or epochs, become longer or shorter by the same factor; see
    :func:`scale_schedule`.

    Args:
        cfg: The config with its new length, changed in place.
        before: The old length, as :func:`training_length` gives it.
        options: Keys of the command line; a schedule that they set is left
            alone.
    """
    length, by_epoch = training_length(cfg)
    old_length, old_by_epoch = before
    if (
        not old_length
        or by_epoch != old_by_epoch
        or _is_set('param_scheduler', options)
    ):
        return
    factor = length / old_length
    if by_epoch:
        scale_schedule(cfg, epochs=factor)
    else:
        scale_schedule(cfg, iters=factor)


def convert_to_iterations(cfg: Config, max_iters: int) -> None:
    """Make a config that counts epochs count iterations.

    The learning rate falls at the same fractions of the training. Validation
    and checkpoint come at the end.

    Args:
        cfg: The config, changed in place.
        max_iters: Length of the training, in iterations.
    """
    epochs, _ = training_length(cfg)
    if not epochs:
        return
    scale_schedule(cfg, epochs=max_iters / epochs)
    for scheduler in _schedulers(cfg):
        scheduler['by_epoch'] = False
        scheduler.pop('convert_to_iter_based', None)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop',
        max_iters=max_iters,
        val_interval=max_iters,
    )
    _save_at_end(cfg)
    cfg.default_hooks.setdefault('logger', dict(type='LoggerHook')).update(
        log_metric_by_epoch=False
    )
    cfg.setdefault('log_processor', dict(type='LogProcessor')).update(
        by_epoch=False
    )


def shorten_training(
    cfg: Config,
    max_epochs: int,
    max_iters: int,
    images: int,
    images_before: int,
    batch_size: int,
    lr_power: float = 0.0,
) -> None:
    """Fit the schedule of a training to a smaller data set.

    The learning rate rises and falls at the same fractions of the training,
    and averaged weights (``EMAHook``) cover the same fraction. Validation and
    checkpoint come at the end.

    Args:
        cfg: The config, changed in place, before its batch size is changed.
        max_epochs: New length if the config counts epochs.
        max_iters: New length if it counts iterations.
        images: Number of training images of the new data set.
        images_before: Number of training images of the old data set.
        batch_size: Images of an iteration of the new training.
        lr_power: The learning rate is multiplied by the ratio of the total
            batches, new to old, to this power. Default: 0, which does not
            change it.
    """
    auto_scale_lr = cfg.get('auto_scale_lr') or {}
    batch_before = auto_scale_lr.get('base_batch_size') or (
        # Configs of MMDetection and MMSegmentation are for 8 GPUs.
        8 * cfg.train_dataloader.batch_size
    )
    length_before, by_epoch = training_length(cfg)
    # Epochs per iteration.
    epochs_before, epochs = batch_before / images_before, batch_size / images
    if by_epoch:
        length = cfg.train_cfg.max_epochs = max_epochs
        epoch_factor = length / length_before
        iter_factor = epoch_factor * epochs_before / epochs
    else:
        length = cfg.train_cfg.max_iters = max_iters
        iter_factor = length / length_before
        epoch_factor = iter_factor * epochs / epochs_before
    scale_schedule(cfg, epoch_factor, iter_factor)
    cfg.train_cfg.val_interval = length
    _save_at_end(cfg)
    for hook in _ema_hooks(cfg):
        momentum = hook.get('momentum', 2e-4) / iter_factor
        hook['momentum'] = min(momentum, 0.5)
    if lr_power:
        cfg.optim_wrapper.optimizer.lr *= (
            batch_size / batch_before
        ) ** lr_power
        if auto_scale_lr:
            # Otherwise --auto-scale-lr would scale it a second time.
            auto_scale_lr['base_batch_size'] = batch_size


def scale_schedule(
    cfg: Config, epochs: float = 1.0, iters: float = 1.0
) -> None:
    """Make the learning-rate schedule longer or shorter.

    The learning rates, of the warm-up as well, stay the same and come earlier
    or later. Each part keeps at least two steps: a warm-up of one step would
    never raise the learning rate in MMEngine.

    Args:
        cfg: The config, changed in place.
        epochs: Factor for the parts that count epochs. Default: 1.
        iters: Factor for the parts that count iterations. Default: 1.
    """
    # The new end of each part, by its unit and old end: a part that began at
    # the old end begins at the new one.
    ends: dict[tuple[bool, int], int] = {}
    for scheduler in _schedulers(cfg):
        by_epoch = scheduler.get('by_epoch', True)
        factor = epochs if by_epoch else iters
        if factor == 1:
            continue
        begin, end = scheduler.get('begin'), scheduler.get('end')
        for key in ('begin', 'T_max', 'step_size', 'total_steps'):
            if scheduler.get(key):
                scheduler[key] = max(1, round(scheduler[key] * factor))
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


def accumulation(cfg: Config) -> int:
    """Number of iterations in each step of the optimizer.

    Raises:
        ConfigError: If ``optim_wrapper.accumulative_counts`` is not a number
            of iterations.
    """
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if not isinstance(counts, int) or counts < 1:
        raise ConfigError(
            f'optim_wrapper.accumulative_counts={counts} is not the number of '
            'iterations in a step of the optimizer, a whole number, 1 or more'
        )
    return counts


def follow_accumulation(
    cfg: Config, before: int, options: Iterable[str]
) -> None:
    """Adapt settings that count steps of the optimizer to the accumulation.

    MMEngine counts iterations, and the number of them in a step has changed.
    Averaged weights (``EMAHook``) are still updated once in a step. In a
    training that counts epochs, a warm-up that counts iterations keeps its
    number of steps. The length of a training that counts iterations does not
    change; a warning says so if the options do not set it.

    Args:
        cfg: The config with the new accumulation, changed in place.
        before: Iterations in each step until now.
        options: Keys of the command line; settings that they change are left
            alone.
    """
    counts = accumulation(cfg)
    if counts == before:
        return
    factor = counts / before
    if not _is_set('custom_hooks', options):
        for hook in _ema_hooks(cfg):
            hook['interval'] = max(1, round(hook.get('interval', 1) * factor))
    length, by_epoch = training_length(cfg)
    if by_epoch and not _is_set('param_scheduler', options):
        scale_schedule(cfg, iters=factor)
    elif not by_epoch and not _is_set('train_cfg.max_iters', options):
        print_log(
            f'{length} iterations are {length // counts} steps of the '
            'optimizer, since gradients are accumulated; '
            f'train_cfg.max_iters={round(length * factor)} has as many steps '
            'as before',
            logger='current',
            level=logging.WARNING,
        )


def enable_auto_scale_lr(cfg: Config, name: str) -> None:
    """Let MMEngine scale the learning rate (``--auto-scale-lr``).

    When it builds the optimizer, MMEngine multiplies the learning rate by the
    total batch, the images of all processes in an iteration, divided by
    ``base_batch_size``.

    Args:
        cfg: The config, changed in place.
        name: Name of the config, for the message.

    Raises:
        ConfigError: If the config does not say for which total batch its
            learning rate is.
    """
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ConfigError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size, which '
            f'{name} does not have'
        )
    cfg.auto_scale_lr.enable = True


def adapt_auto_scale_lr(
    cfg: Config, auto_scale_lr: dict | None
) -> dict | None:
    """Adapt the dict ``auto_scale_lr`` to accumulated gradients.

    MMEngine multiplies the learning rate by the images of an iteration
    divided by ``base_batch_size``. With accumulated gradients, a step of the
    optimizer takes the images of several iterations.

    Args:
        cfg: The config.
        auto_scale_lr: Dict with ``enable`` and ``base_batch_size``, the
            images of a step that the learning rate was chosen for.

    Returns:
        A dict with ``base_batch_size`` divided by the iterations of a step,
        so that MMEngine scales the learning rate by the images of a step. The
        given one if it is not enabled or gradients are not accumulated.
    """
    iterations = accumulation(cfg)
    if iterations == 1 or not auto_scale_lr or not auto_scale_lr.get('enable'):
        return auto_scale_lr
    base = auto_scale_lr['base_batch_size']
    print_log(
        f'Gradients of {iterations} iterations are accumulated: the learning '
        f'rate is for {base} images a step, which are '
        f'{base / iterations:g} an iteration.',
        'current',
    )
    return dict(auto_scale_lr, base_batch_size=base / iterations)


def _schedulers(cfg: Config) -> list[ConfigDict]:
    schedulers = cfg.get('param_scheduler') or []
    return [schedulers] if isinstance(schedulers, Mapping) else schedulers


def _save_at_end(cfg: Config) -> None:
    """Make the checkpoint hook save once, at the end of the training."""
    length, by_epoch = training_length(cfg)
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=by_epoch, interval=length
    )


def _ema_hooks(cfg: Config) -> list[ConfigDict]:
    hooks = cfg.get('custom_hooks') or []
    return [hook for hook in hooks if type_name(hook) == 'EMAHook']


def _is_set(key: str, options: Iterable[str]) -> bool:
    return any(f'{option}.'.startswith(f'{key}.') for option in options)
