"""A run goes on as it began: same seed, same frozen stages."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, find_latest_checkpoint

from mmefficientmod.config.nodes import ConfigError, find_model


def resume_as_before(cfg: Config) -> None:
    """Take the seed of the checkpoint, and see that the same is frozen.

    MMEngine takes the seed after the order of the data was drawn. Whether
    `--backbone` keeps frozen stages depends on `--pretrained`.

    Raises:
        ConfigError: If the run that is resumed had other stages frozen.
    """
    path = cfg.get('load_from')
    if not path and Path(cfg.work_dir, 'last_checkpoint').is_file():
        path = find_latest_checkpoint(cfg.work_dir)
    if not path:
        return
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
    meta = checkpoint.get('meta') or {}
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=meta.get('seed'))
    if isinstance(meta.get('cfg'), str):
        before = _frozen(Config.fromstring(meta['cfg'], '.py'))
        now = _frozen(cfg)
        if before != now:
            raise ConfigError(
                f'{path} is of a run with frozen_stages={before}, and this '
                f'one has {now}; give the options of that run again, also '
                '--pretrained'
            )


def _frozen(cfg: Config) -> int:
    try:
        return find_model(cfg).backbone.get('frozen_stages', -1)
    except ConfigError:  # it brings its own backbone
        return -1
