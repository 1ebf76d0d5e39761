"""``--mini``: any config on a small generated data set of its own layout."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmefficientmod.config import (
    ConfigError,
    replace_everywhere,
    scale_schedule,
)

from .ade20k_mini import write_ade20k_mini
from .checks import dataset_dicts

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@dataclass(frozen=True)
class Miniature:
    """A generated data set and the sizes that go with it.

    Attributes:
        folder: Name below ``data/mini``; a number in it counts the changes
            of the generator.
        write: Writes the data set to a folder.
        scale: Longest and shortest side that images are resized to.
        crop_size: Height and width of the crops.
        batch_size: Images a training step.
        max_iters: Length of the training.
    """

    folder: str
    write: Callable[[Path], None]
    scale: tuple[int, int]
    crop_size: tuple[int, int]
    batch_size: int
    max_iters: int


MINIATURES = {
    'ADE20KDataset': Miniature(
        folder='ade20k-2',
        write=write_ade20k_mini,
        scale=(384, 96),
        crop_size=(80, 80),
        batch_size=2,
        max_iters=120,
    ),
}


def apply_mini(cfg: Config, root: str = 'data/mini') -> None:
    """Put a config on the miniature of its data set.

    Data, image sizes, schedule, batch and workers change; the model and the
    rest of the config stay as they are.

    Args:
        cfg: The config, changed in place.
        root: Folder in which the miniatures are kept.

    Raises:
        ConfigError: If its data set has no miniature.
    """
    types = {d['type'] for x in LOADERS for d in dataset_dicts(cfg, x)}
    types = {t.split('.')[-1] for t in types}
    if len(types) != 1 or not types <= set(MINIATURES):
        raise ConfigError(
            f'--mini has no miniature of {", ".join(sorted(types)) or "it"}; '
            f'it has one of {", ".join(MINIATURES)}'
        )
    mini = MINIATURES[types.pop()]
    data_root = prepare(mini, root)
    for loader in LOADERS:
        for dataset in dataset_dicts(cfg, loader):
            replace_everywhere(cfg, dataset['data_root'], str(data_root))
    _shrink_sizes(cfg, mini)
    _shrink_schedule(cfg, mini)
    for loader in LOADERS:
        if cfg.get(loader):
            # The images are small: a worker would take a core from training.
            cfg[loader].update(num_workers=0, persistent_workers=False)
    if cfg.get('train_dataloader'):
        cfg.train_dataloader.batch_size = mini.batch_size
    cfg.setdefault('randomness', dict(seed=0))


def prepare(mini: Miniature, root: str) -> Path:
    """Write the miniature unless it is there already.

    It appears at its place only when it is complete, so that neither an
    interruption nor a second process leaves half of it.

    Returns:
        Its folder.
    """
    folder = Path(root, mini.folder)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix='.draft-', dir=folder.parent))
    try:
        mini.write(draft)
        draft.chmod(0o755)  # mkdtemp makes it private
        os.rename(draft, folder)
    except OSError:
        if not folder.is_dir():  # no other process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _shrink_sizes(cfg: Config, mini: Miniature) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if _is_pair(node.get('scale')):
                node['scale'] = mini.scale
            if _is_pair(node.get('crop_size')):
                node['crop_size'] = mini.crop_size
            node = node.values()
        if not isinstance(node, str) and hasattr(node, '__iter__'):
            for value in node:
                walk(value)

    for loader in LOADERS:
        walk(cfg.get(loader) or {})
    walk(cfg.get('tta_pipeline') or [])
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if _is_pair(preprocessor.get('size')):
        preprocessor['size'] = mini.crop_size


def _shrink_schedule(cfg: Config, mini: Miniature) -> None:
    train_cfg = cfg.get('train_cfg')
    if not train_cfg:
        return
    if not train_cfg.get('max_iters'):
        raise ConfigError(
            '--mini shortens a training by iterations, and this config '
            'counts epochs'
        )
    scale_schedule(cfg, train_cfg.max_iters, False, mini.max_iters, False)
    train_cfg.max_iters = mini.max_iters
    train_cfg.val_interval = mini.max_iters
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('logger', dict(type='LoggerHook'))['interval'] = 20
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=False, interval=mini.max_iters
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2
