"""Resuming: the seed and the frozen stages of the run that is continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import find_latest_checkpoint

from mmefficientmod.checkpoint.entry import for_run
from mmefficientmod.checkpoint.reading import CheckpointError, read_checkpoint
from mmefficientmod.config.literals import read_literals
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
        CheckpointError: If the checkpoint cannot be read or has no state of a
            training.
        ConfigError: If the checkpoint was trained with another number of
            frozen stages.
    """
    path = first_checkpoint(cfg)
    if not path:
        return
    meta = training_meta(for_run(read_checkpoint(path), path), path)
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


def training_meta(checkpoint: Any, path: str) -> Mapping[str, Any]:
    """What a checkpoint says of the training that wrote it.

    Args:
        checkpoint: Content of the file.
        path: Its name, for messages.

    Returns:
        ``meta`` of the content, with ``epoch`` and ``iter``.

    Raises:
        CheckpointError: If it has no state of a training, or one that
            MMEngine cannot have written.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    meta = content.get('meta')
    hub = content.get('message_hub')
    if not isinstance(meta, Mapping) or not isinstance(hub, Mapping):
        raise CheckpointError(
            f'{path} has no state of a training, so it cannot be resumed; to '
            'start from its weights, use --cfg-options load_from=FILE '
            'without --resume'
        )
    seed = meta.get('seed')
    parts = ('log_scalars', 'runtime_info', 'resumed_keys')
    for name, valid in (
        *((key, _is_count(meta.get(key))) for key in ('epoch', 'iter')),
        ('seed', seed is None or (_is_count(seed) and seed < 2**32)),
        *((part, isinstance(hub.get(part), Mapping)) for part in parts),
    ):
        if not valid:
            raise CheckpointError(
                f'{path} cannot be resumed: its {name} is missing or is not '
                'what MMEngine writes'
            )
    return meta


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _frozen_stages(cfg: Config | ConfigDict) -> Any:
    try:
        return find_model(cfg).backbone.get('frozen_stages', -1)
    except ConfigError:  # the model has no replaceable backbone
        return -1
