"""What the options of training and testing change in a config or a runner."""

from __future__ import annotations

import logging
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import (
    ConfigError,
    dataset_dicts,
    find_model,
    type_name,
)


def train_with_amp(cfg: Config) -> None:
    """Train in mixed precision (``--amp``).

    Args:
        cfg: The config, changed in place.

    Raises:
        ConfigError: If its optimizer wrapper has no mixed precision.
    """
    wrapper = cfg.optim_wrapper
    name = type_name(wrapper) or 'OptimWrapper'
    if name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp cannot replace the optimizer wrapper {name}')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def train_with_fsdp(cfg: Config) -> None:
    """Shard the weights over the processes (``--fsdp``).

    Args:
        cfg: The config, changed in place.
    """
    cfg.merge_from_dict(load_config('mmefficientmod::_base_/fsdp.py'))


def warn_without_weights(cfg: Config, fine_tunes: bool) -> None:
    """Warn if a recipe for pretrained weights starts from random ones.

    Args:
        cfg: The config.
        fine_tunes: Whether a classifier is trained on the user's own data.
    """
    try:
        backbone = find_model(cfg).backbone
    except ConfigError:  # the model has no replaceable backbone
        return
    if (
        type_name(backbone) == 'EfficientMod'
        and not backbone.get('init_cfg')
        and not cfg.get('load_from')
        and (fine_tunes or cfg.get('default_scope') != 'mmpretrain')
    ):
        print_log(
            'The backbone starts from random weights'
            + ('' if fine_tunes else '; the published results do not')
            + ': give it ImageNet weights with --pretrained FILE',
            logger='current',
            level=logging.WARNING,
        )


def use_tta(cfg: Config, name: str) -> None:
    """Test with the test-time augmentation of a config (``--tta``).

    Args:
        cfg: The config, changed in place.
        name: Name of the config, for the message.

    Raises:
        ConfigError: If the config has none.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError(f'--tta: {name} has no tta_model and tta_pipeline')
    for dataset in dataset_dicts(cfg, 'test_dataloader'):
        dataset['pipeline'] = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def save_predictions(runner: Runner | FlexibleRunner, folder: Path) -> None:
    """Have a test write its predictions to ``folder/predictions`` (``--out``).

    Metrics that write label maps, as MMSegmentation's do, write one PNG file
    for each image. For other tasks MMEngine's ``DumpResults`` writes
    ``predictions.pkl``.

    Args:
        runner: The runner, before its test.
        folder: The folder; made if it does not exist.
    """
    metrics = runner.test_evaluator.metrics
    writers = [m for m in metrics if hasattr(m, 'output_dir')]
    (folder / 'predictions').mkdir(parents=True, exist_ok=True)
    for metric in writers:
        metric.output_dir = str(folder / 'predictions')
    if not writers:
        path = folder / 'predictions/predictions.pkl'
        metrics.append(DumpResults(out_file_path=str(path)))
