"""Resuming: the seed and the frozen stages of the run that is continued."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, find_latest_checkpoint

from mmefficientmod.config.nodes import ConfigError, find_model


def first_checkpoint(cfg: Config) -> str | None:
    """The checkpoint that a training starts from.

    Args:
        cfg: The config.

    Returns:
        ``load_from``, or else the last checkpoint in ``work_dir`` if the run
        is resumed; None if there is none.
    """
    path = cfg.get('load_from')
    if path or not cfg.get('resume'):
        return path
    # MMEngine warns if there is none.
    if Path(cfg.work_dir, 'last_checkpoint').is_file():
        return find_latest_checkpoint(cfg.work_dir)
    return None


def resume_as_before(cfg: Config) -> None:
    """Take the seed of the checkpoint, and compare the frozen stages.

    MMEngine also takes the seed of the checkpoint, but only after it has built
    the data loader, which shuffles by another seed. ``--backbone`` keeps
    frozen stages only with ``--pretrained``; a user who resumes without that
    option would train other layers than before.

    Args:
        cfg: The config, changed in place; see :func:`first_checkpoint`.

    Raises:
        ConfigError: If the checkpoint was trained with another number of
            frozen stages.
    """
    path = first_checkpoint(cfg)
    if not path:
        return
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
    meta = checkpoint.get('meta') or {}
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=meta.get('seed'))
    if isinstance(meta.get('cfg'), str):
        before = _frozen_stages(Config.fromstring(meta['cfg'], '.py'))
        now = _frozen_stages(cfg)
        if before != now:
            raise ConfigError(
                f'{path} was trained with frozen_stages={before}, and this '
                f'run has frozen_stages={now}; resume with the options of '
                'the first run, including --backbone and --pretrained'
            )


def _frozen_stages(cfg: Config) -> int:
    try:
        return find_model(cfg).backbone.get('frozen_stages', -1)
    except ConfigError:  # the model has no replaceable backbone
        return -1
