"""``--mini``: any config on a small generated data set of its own layout."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import (
    ConfigError,
    dataset_dicts,
    is_pair,
    replace_everywhere,
    type_name,
    walk_pipelines,
)
from mmefficientmod.config.schedule import scale_schedule

from .ade20k import write_ade20k_mini
from .coco import write_coco_mini
from .imagenet import write_folder_mini, write_imagenet_mini

# The smallest of the family that the authors' teacher is of.
STAND_IN_TEACHER = dict(
    model='timm:regnety_002', checkpoint='random', size=None
)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@dataclass(frozen=True)
class Miniature:
    """A generated data set and the sizes that go with it.

    Attributes:
        folder: Name below ``data/mini``; a number in it counts the changes
            of the generator.
        write: Writes the data set to a folder.
        images: Images that it has to train on.
        images_of_whole: Images to train on of the data set that it stands
            for, so that what counts iterations can be shortened with what
            counts epochs.
        scale: Longest and shortest side that images are resized to.
        crop_size: Height and width of the crops.
        batch_size: Images a training step.
        max_iters: Length of the training; one that counts epochs gets the
            epochs that come closest.
        lr_power: The learning rate is scaled by the ratio of the batches to
            this power. Default: 0, which leaves it as it is.
    """

    folder: str
    write: Callable[[Path], None]
    images: int
    images_of_whole: int
    scale: tuple[int, int]
    crop_size: tuple[int, int]
    batch_size: int
    max_iters: int
    lr_power: float = 0.0

    @property
    def max_epochs(self) -> int:
        """Length of a training that counts epochs."""
        return max(1, round(self.max_iters * self.batch_size / self.images))


MINIATURES = {
    'ADE20KDataset': Miniature(
        folder='ade20k-2',
        write=write_ade20k_mini,
        images=96,
        images_of_whole=20_210,
        scale=(384, 96),
        crop_size=(80, 80),
        batch_size=2,
        max_iters=150,
    ),
    'CocoDataset': Miniature(
        folder='coco-2',
        write=write_coco_mini,
        images=44,  # of 48, the others have no object
        images_of_whole=117_266,
        scale=(384, 64),
        crop_size=(64, 64),
        batch_size=1,
        max_iters=88,
    ),
    'ImageNet': Miniature(
        folder='imagenet-2',
        write=write_imagenet_mini,
        images=256,
        images_of_whole=1_281_167,
        scale=(64, 64),
        crop_size=(64, 64),
        batch_size=16,
        max_iters=320,
        # Half of the exponent that fits SGD, as is usual for Adam: the linear
        # rule would leave 3e-5 of 4e-3, too little for so few steps.
        lr_power=0.5,
    ),
    # Stands for anybody's class folders, which are small already.
    'CustomDataset': Miniature(
        folder='folder-1',
        write=write_folder_mini,
        images=256,
        images_of_whole=256,
        scale=(64, 64),
        crop_size=(64, 64),
        batch_size=16,
        max_iters=320,
        lr_power=0.5,
    ),
}


def apply_mini(cfg: Config, root: str = 'data/mini') -> None:
    """Put a config on the miniature of its data set.

    Data, image sizes, schedule, batch and workers change, and what goes with
    these: the time over which weights are averaged and, where the miniature
    says so, the learning rate. A teacher that would be downloaded gives way to
    a small one with random weights, since it knows nothing of the drawings.
    The rest of the model and of the config stay as they are.

    Args:
        cfg: The config, changed in place.
        root: Folder in which the miniatures are kept.

    Raises:
        ConfigError: If its data set has no miniature.
    """
    types = {type_name(d) for x in LOADERS for d in dataset_dicts(cfg, x)}
    if len(types) != 1 or not types <= set(MINIATURES):
        raise ConfigError(
            f'--mini has no miniature of {", ".join(sorted(types)) or "it"}; '
            f'it has one of {", ".join(MINIATURES)}'
        )
    mini = MINIATURES[types.pop()]
    data_root = prepare(mini, root)
    for loader in LOADERS:
        for dataset in dataset_dicts(cfg, loader):
            # Evaluators name files in it, too.
            if dataset.get('data_root'):
                replace_everywhere(cfg, dataset['data_root'], str(data_root))
            dataset['data_root'] = str(data_root)
    _shrink_sizes(cfg, mini)
    _stand_in_for_teacher(cfg)
    if cfg.get('train_cfg'):
        _shrink_schedule(cfg, mini)
        cfg.train_dataloader.batch_size = mini.batch_size
    for loader in LOADERS:
        if cfg.get(loader):
            # The images are small: a worker would take a core from training.
            cfg[loader].update(num_workers=0, persistent_workers=False)
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=0)


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
    steps = list(walk_pipelines(cfg))
    # Classification gives most sizes as one number, which shrink together.
    sides = [x['crop_size'] for x in steps if _is_side(x.get('crop_size'))]
    ratio = mini.crop_size[0] / max(sides, default=1)
    for step in steps:
        for key in ('scale', 'crop_size'):
            if is_pair(step.get(key)):
                step[key] = getattr(mini, key)
            elif _is_side(step.get(key)) and sides:
                step[key] = round(step[key] * ratio)
    if is_pair(cfg.get('crop_size')):
        # Where options look for what to replace.
        cfg.crop_size = mini.crop_size
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if is_pair(preprocessor.get('size')):
        preprocessor['size'] = mini.crop_size


def _stand_in_for_teacher(cfg: Config) -> None:
    teacher = cfg.model.get('teacher') or {}
    if type_name(cfg.model) == 'DistilledClassifier' and not teacher.get(
        'checkpoint'
    ):
        cfg.model.teacher = ConfigDict(STAND_IN_TEACHER)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and value > 1


def _shrink_schedule(cfg: Config, mini: Miniature) -> None:
    auto_scale_lr = cfg.get('auto_scale_lr') or {}
    # MMDetection's and MMSegmentation's configs are for 8 GPUs.
    batch = auto_scale_lr.get(
        'base_batch_size', 8 * cfg.train_dataloader.batch_size
    )
    by_epoch = not cfg.train_cfg.get('max_iters')
    if by_epoch:
        epochs, new_epochs = cfg.train_cfg.max_epochs, mini.max_epochs
        iters = epochs * mini.images_of_whole / batch
        new_iters = new_epochs * mini.images / mini.batch_size
        new_length = cfg.train_cfg.max_epochs = new_epochs
    else:
        iters, new_iters = cfg.train_cfg.max_iters, mini.max_iters
        epochs = iters * batch / mini.images_of_whole
        new_epochs = new_iters * mini.batch_size / mini.images
        new_length = cfg.train_cfg.max_iters = new_iters
    scale_schedule(cfg, new_epochs / epochs, new_iters / iters)
    cfg.train_cfg.val_interval = new_length
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('logger', dict(type='LoggerHook'))['interval'] = 20
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=by_epoch, interval=new_length
    )
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) == 'EMAHook':
            # The average reaches over the same share of the training.
            momentum = hook.get('momentum', 2e-4) * iters / new_iters
            hook['momentum'] = min(momentum, 0.5)
    if mini.lr_power:
        cfg.optim_wrapper.optimizer.lr *= (
            mini.batch_size / batch
        ) ** mini.lr_power
        # Scaled once, and not again by `--auto-scale-lr`.
        if auto_scale_lr:
            auto_scale_lr.base_batch_size = mini.batch_size
