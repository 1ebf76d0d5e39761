"""Resuming: which checkpoint, which seed, and whether the options fit it."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import print_log

from mmefficientmod.config.literals import read_literals
from mmefficientmod.config.nodes import ConfigError, find_model
from mmefficientmod.config.schedule import training_length
from mmefficientmod.engine.work_dir import newest_checkpoint, read_meta


def choose_checkpoint(cfg: Config) -> str | None:
    """The checkpoint that a training starts from.

    Args:
        cfg: The config, changed in place. A run that is resumed without
            ``load_from`` gets the newest checkpoint of its work dir, or is
            no longer resumed if there is none.

    Returns:
        The path or URL, None if there is none.

    Raises:
        CheckpointError: If a run cannot continue from it.
    """
    if not cfg.get('resume'):
        return cfg.get('load_from')
    if cfg.get('load_from'):
        read_meta(cfg.load_from)
        return cfg.load_from
    found = [newest_checkpoint(cfg.work_dir) if get_rank() == 0 else None]
    broadcast_object_list(found)
    cfg.load_from = found[0]
    if found[0] is None:
        print_log(
            f'--resume: {cfg.work_dir} has no checkpoint; this run starts at '
            'the beginning',
            'current',
        )
        cfg.resume = False
    return found[0]


def nothing_left(cfg: Config, path: str) -> str | None:
    """Say that a resumed training is at its end, None if it is not.

    Args:
        cfg: The config.
        path: The checkpoint that the run continues from.
    """
    length, by_epoch = training_length(cfg)
    unit = 'epoch' if by_epoch else 'iter'
    done = read_meta(path)[unit]
    if not cfg.get('resume') or not length or done < length:
        return None
    return (
        f'{path} was saved after {unit} {done}, and the training ends after '
        f'{length}: nothing is left to do. Train longer with '
        f'--cfg-options train_cfg.max_{unit}s=N'
    )


def resume_as_before(cfg: Config) -> None:
    """Take the seed of the checkpoint, and compare the frozen stages.

    MMEngine also takes the seed of the checkpoint, but only after it has built
    the data loader, which shuffles by another seed. ``--backbone`` keeps
    frozen stages only with ``--pretrained``; a user who resumes without that
    option would train other layers than before.

    Args:
        cfg: The config, changed in place; see :func:`choose_checkpoint`.

    Raises:
        CheckpointError: If the checkpoint cannot be read or has no state of a
            training.
        ConfigError: If the checkpoint was trained with another number of
            frozen stages.
    """
    path = choose_checkpoint(cfg)
    if not path or not cfg.resume:
        return
    meta = read_meta(path)
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=meta.get('seed'))
    if isinstance(meta.get('cfg'), str):
        # The text is not run: it is that of a stranger, perhaps.
        try:
            before = _frozen_stages(ConfigDict(read_literals(meta['cfg'])))
        except ValueError:
            return
        now = _frozen_stages(cfg)
        if before != now:
            raise ConfigError(
                f'{path} was trained with frozen_stages={before}, and this '
                f'run has frozen_stages={now}; resume with the options of '
                'the first run, including --backbone and --pretrained'
            )


def _frozen_stages(cfg: Config | ConfigDict) -> Any:
    try:
        return find_model(cfg).backbone.get('frozen_stages', -1)
    except ConfigError:  # the model has no replaceable backbone
        return -1
