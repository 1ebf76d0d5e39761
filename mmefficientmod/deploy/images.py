"""Images to try an exported file on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.config import Config

from mmefficientmod.config.nodes import LOADERS, ConfigError, dataset_dicts
from mmefficientmod.datasets.checks import DataError, join_root
from mmefficientmod.datasets.images import IMAGE_SUFFIXES
from mmefficientmod.datasets.mini.ade20k import draw_scene


def find_images(cfg: Config, folder: str | None, number: int) -> list[Path]:
    """Image files to try a model on.

    Args:
        cfg: The config of the model.
        folder: A folder of images, searched with the folders below it.
            Default: the images of the config's test, validation or training,
            if there are any.
        number: Most files to return.

    Raises:
        ConfigError: If the folder has no images.
    """
    if folder is not None:
        found = list(itertools.islice(_walk(Path(folder)), number))
        if not found:
            raise _no_images(folder)
        return found
    for loader in ('test_dataloader', 'val_dataloader', LOADERS[0]):
        for dataset in dataset_dicts(cfg, loader):
            for path in _image_folders(dataset):
                found = list(itertools.islice(_walk(path), number))
                if found:
                    return found
    return []


def spread_images(folder: str, number: int) -> list[Path]:
    """Image files from all parts of a folder, such as from all classes.

    Args:
        folder: Searched with the folders below it.
        number: Most files to return.

    Raises:
        ConfigError: If the folder has no images.
    """
    found = list(_walk(Path(folder)))
    if not found:
        raise _no_images(folder)
    number = min(number, len(found))
    return [found[i * len(found) // number] for i in range(number)]


def _no_images(folder: str) -> ConfigError:
    return ConfigError(
        f'{folder} has no images: their names end in '
        f'{", ".join(IMAGE_SUFFIXES)}'
    )


def _image_folders(dataset: Mapping) -> Iterator[Path]:
    """The folders in which a data set has its images."""
    prefix = dataset.get('data_prefix')
    names = [prefix] if isinstance(prefix, str) else []
    if isinstance(prefix, Mapping):
        names = [
            v
            for k, v in prefix.items()
            if k.startswith('img') and isinstance(v, str)
        ]
    for name in names or [''] * bool(dataset.get('data_root')):
        path = join_root(dataset, name)
        if '://' not in path:
            yield Path(path)


def _walk(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read image files, each ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: If a file cannot be read.
    """
    images = []
    for path in paths:
        try:
            image = mmcv.imread(str(path), channel_order='rgb')
        except Exception as error:
            raise DataError(f'{path} cannot be read: {error}') from error
        if image is None:
            raise DataError(f'{path} cannot be read as an image')
        images.append(image)
    return images


def drawn_images(number: int) -> list[np.ndarray]:
    """Drawn street scenes, for a check without any files."""
    scenes = (draw_scene(np.random.default_rng(i)) for i in range(number))
    return [np.ascontiguousarray(image[..., ::-1]) for image, _ in scenes]


def as_batch(
    images: Sequence[np.ndarray], batch: int, height: int, width: int
) -> np.ndarray:
    """The first images in one size, in turn if there are too few.

    Args:
        images: Each ``(H', W', 3)`` uint8.
        batch: Number N of images.
        height: Height H, in pixels.
        width: Width W, in pixels.

    Returns:
        ``(N, H, W, 3)`` uint8.
    """
    return np.stack(
        [
            cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            for image in itertools.islice(itertools.cycle(images), batch)
        ]
    )
