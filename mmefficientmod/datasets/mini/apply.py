"""``--mini``: a config on a small generated data set in the same layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.atomic import write_folder
from mmefficientmod.config.nodes import (
    LOADERS,
    ConfigError,
    dataset_dicts,
    is_pair,
    replace_everywhere,
    type_name,
    walk_pipelines,
)
from mmefficientmod.config.schedule import shorten_training

from .ade20k import write_ade20k_mini
from .coco import write_coco_mini
from .imagenet import write_folder_mini, write_imagenet_mini

# The smallest model of the family of the authors' teacher.
STAND_IN_TEACHER = dict(
    model='timm:regnety_002', checkpoint='random', size=None
)


@dataclass(frozen=True)
class Miniature:
    """A generated data set and the training settings for it.

    Attributes:
        folder: Name below ``data/mini``. Its number is raised when the
            generator changes.
        write: Writes the data set to a folder.
        images: Number of training images.
        images_of_whole: Number of training images of the real data set.
            Schedules in iterations and in epochs are converted with it.
        scale: Longest and shortest side of resized images, in pixels.
        crop_size: Height and width of the crops, in pixels.
        batch_size: Images per training step.
        max_iters: Length of the training in iterations; a schedule in epochs
            gets the closest number of epochs.
        lr_power: The learning rate is multiplied by the ratio of the batch
            sizes to this power. Default: 0, which does not change it.
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
        """Length of a training whose schedule is in epochs."""
        return max(1, round(self.max_iters * self.batch_size / self.images))


IMAGENET = Miniature(
    folder='imagenet-2',
    write=write_imagenet_mini,
    images=256,
    images_of_whole=1_281_167,
    scale=(64, 64),
    crop_size=(64, 64),
    batch_size=16,
    max_iters=320,
    # The square-root rule, as is usual for Adam. The linear rule would make
    # 3e-5 of 4e-3, too little for so few steps.
    lr_power=0.5,
)
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
        images=44,  # of 48; the other 4 have no object
        images_of_whole=117_266,
        scale=(384, 64),
        crop_size=(64, 64),
        batch_size=1,
        max_iters=88,
    ),
    'ImageNet': IMAGENET,
    # Class folders of a user's own images are as small as the miniature.
    'CustomDataset': replace(
        IMAGENET,
        folder='folder-1',
        write=write_folder_mini,
        images_of_whole=IMAGENET.images,
    ),
}


def apply_mini(cfg: Config, root: str = 'data/mini') -> None:
    """Make a config use the miniature of its data set.

    Changes the data, image sizes, schedule, batch size and workers; the
    momentum of averaged weights, which depends on the schedule; and the
    learning rate if the miniature has a ``lr_power``. A teacher without a
    ``checkpoint``, whose weights timm would download, is replaced by a small
    one with random weights, since it was not trained on such drawings. The
    rest of the config stays as it is.

    Args:
        cfg: The config, changed in place.
        root: Folder of the miniatures. They are written when first used.
            Default: ``data/mini``.

    Raises:
        ConfigError: If the config has no data set, several kinds of data
            sets, or one without a miniature.
    """
    types = {type_name(d) for x in LOADERS for d in dataset_dicts(cfg, x)}
    if len(types) != 1 or not types <= set(MINIATURES):
        raise ConfigError(
            '--mini: the config has '
            f'{", ".join(sorted(types)) or "no data set"}; it needs one of '
            f'{", ".join(MINIATURES)}'
        )
    mini = MINIATURES[types.pop()]
    data_root = prepare(mini, root)
    for loader in LOADERS:
        for dataset in dataset_dicts(cfg, loader):
            # Evaluators name files below data_root, too.
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
            # Loading small images is cheap, and workers would compete with
            # the training for cores.
            cfg[loader].update(num_workers=0, persistent_workers=False)
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        cfg.randomness = dict(randomness, seed=0)


def prepare(mini: Miniature, root: str) -> Path:
    """Write the miniature unless it exists.

    Args:
        mini: The miniature.
        root: Folder of the miniatures.

    Returns:
        Folder of this miniature.

    Raises:
        OSError: If it cannot be written.
    """
    return write_folder(Path(root, mini.folder), mini.write)


def _shrink_sizes(cfg: Config, mini: Miniature) -> None:
    steps = list(walk_pipelines(cfg))
    # Classification configs give most sizes as one number. All are multiplied
    # by the same ratio.
    sides = [x['crop_size'] for x in steps if _is_side(x.get('crop_size'))]
    ratio = mini.crop_size[0] / max(sides, default=1)
    for step in steps:
        for key in ('scale', 'crop_size'):
            value = step.get(key)
            if is_pair(value):
                size = getattr(mini, key)
                # A range of sizes is a pair of pairs.
                step[key] = [size, size] if is_pair(value[0]) else size
            elif _is_side(step.get(key)) and sides:
                step[key] = round(step[key] * ratio)
    if is_pair(cfg.get('crop_size')):
        # `apply_options` reads the old value here.
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
    shorten_training(
        cfg,
        max_epochs=mini.max_epochs,
        max_iters=mini.max_iters,
        images=mini.images,
        images_before=mini.images_of_whole,
        batch_size=mini.batch_size,
        lr_power=mini.lr_power,
    )
    logger = cfg.default_hooks.setdefault('logger', dict(type='LoggerHook'))
    logger['interval'] = 20
