"""Class folders: data sets whose folders are the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.class_checks import metainfo
from mmefficientmod.config.nodes import (
    ConfigError,
    dataset_dicts,
    type_name,
    walk,
)
from mmefficientmod.datasets.checks import DataError


def fit_classes(cfg: Config, loaders: Sequence[str]) -> list[str] | None:
    """Check class folders, and set a classifier's number of classes to theirs.

    MMPretrain's ``CustomDataset`` without a list of files reads one folder for
    each class and numbers the folders in alphabetical order.

    Args:
        cfg: The config, changed in place.
        loaders: Names of the data loaders in use. Their data must have the
            same classes.

    Returns:
        Names of the classes, or None where the data has no class folders.

    Raises:
        DataError: If a folder is missing or has fewer than two classes, if a
            class has no images, or if the classes of two data loaders differ.
        ConfigError: If the head has no ``num_classes``.
    """
    found: dict[Path, list[str]] = {}
    names = None
    for loader in loaders:
        for dataset in _folder_datasets(cfg, loader):
            folder = _folder(dataset)
            found[folder] = _classes(folder, dataset)
            names = names or (dataset.get('metainfo') or {}).get('classes')
    if not found:
        return None
    (first, classes), *others = found.items()
    for folder, other in others:
        if other != classes:
            raise DataError(
                f'{first} and {folder} must have the same classes, but '
                + ' and '.join(
                    f'{", ".join(more)} is in {where} only'
                    for where, more in (
                        (first, sorted({*classes} - {*other})),
                        (folder, sorted({*other} - {*classes})),
                    )
                    if more
                )
            )
    set_num_classes(cfg, len(classes))
    return list(names or classes)


def has_class_folders(cfg: Config) -> bool:
    """Whether a config reads its data from class folders."""
    return any(
        True
        for loader in ('train_dataloader', 'test_dataloader')
        for _ in _folder_datasets(cfg, loader)
    )


def set_num_classes(cfg: Config, num_classes: int) -> None:
    """Set the number of classes in all parts of a classifier's config.

    Entries of the metric's ``topk`` that are not below it are removed.

    Args:
        cfg: The config, changed in place.
        num_classes: The number of classes.

    Raises:
        ConfigError: If the head has no ``num_classes``.
    """
    model = cfg.get('model') or ConfigDict()
    head = [n for n in walk(model.get('head')) if 'num_classes' in n]
    backbone = model.get('backbone') or {}
    if not head and 'num_classes' in backbone:
        # VGG and others of their time have the classifier in the backbone.
        backbone['num_classes'] = num_classes
    elif not head:
        raise ConfigError(
            f'{type_name(model.get("head")) or type_name(model)} has no '
            'num_classes to set to the number of class folders; take a config '
            'with a LinearClsHead'
        )
    parts = [
        model.get('head'), model.get('train_cfg'),
        model.get('data_preprocessor'), cfg.get('data_preprocessor'),
        cfg.get('val_evaluator'), cfg.get('test_evaluator'),
    ]  # fmt: skip
    for node in walk(parts):
        if 'num_classes' in node:
            node['num_classes'] = num_classes
        if isinstance(node.get('topk'), (list, tuple)):
            node['topk'] = [k for k in node['topk'] if k < num_classes]


def check_imagenet_folders(
    dataset: Mapping[str, Any], owner: str
) -> str | None:
    """Whether MMPretrain's ``ImageNet`` finds as many folders as classes.

    Args:
        dataset: The dict of the data set.
        owner: Its name in messages.

    Returns:
        What is wrong; None if nothing is, or if a list has the labels.
    """
    from mmpretrain.datasets.custom import find_folders

    split = dataset.get('split') or ''
    listed = Path(dataset.get('data_root') or '', 'meta', f'{split}.txt')
    if dataset.get('ann_file') or split == 'test' or listed.is_file():
        return None
    folder = _folder({'data_prefix': split, **dataset})
    if not folder.is_dir():
        return None
    classes, _ = find_folders(str(folder))
    expected = len(metainfo(dataset).get('classes') or ())
    if not expected or len(classes) == expected:
        return None
    return (
        f'{owner}: {folder} has {len(classes)} class folders, and the data '
        f'set {expected} classes; for classes of your own take the data set '
        "type 'CustomDataset', as in "
        'configs/cls/efficientmod_s_finetune_folder.py'
    )


def _folder_datasets(cfg: Config, loader: str) -> Iterator[Mapping[str, Any]]:
    for dataset in dataset_dicts(cfg, loader):
        if (
            type_name(dataset) == 'CustomDataset'
            and not dataset.get('ann_file')
            and dataset.get('with_label', True)
        ):
            yield dataset


def _folder(dataset: Mapping[str, Any]) -> Path:
    prefix = dataset.get('data_prefix') or ''
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path') or ''
    return Path(dataset.get('data_root') or '', prefix)


def _classes(folder: Path, dataset: Mapping[str, Any]) -> list[str]:
    """The classes that the data set will find, checked to have images."""
    from mmpretrain.datasets import CustomDataset
    from mmpretrain.datasets.custom import find_folders, get_samples

    if not folder.is_dir():
        raise DataError(
            f'{folder} does not exist. It should have one folder of images '
            'for each class. Name another one with `--cfg-options '
            'data_root=...`, or use generated images with `--mini`'
        )
    options = {k: dataset[k] for k in ('extensions',) if k in dataset}
    reader = CustomDataset(data_root=str(folder), lazy_init=True, **options)
    classes, numbers = find_folders(str(folder))
    if len(classes) < 2:
        raise DataError(
            f'the number of class folders in {folder} is {len(classes)}; it '
            'needs at least two folders of images, such as '
            f'{folder}/cat and {folder}/dog'
        )
    _, empty = get_samples(str(folder), numbers, reader.is_valid_file)
    if empty:
        raise DataError(
            f'{folder / min(empty)} has no images (files that end in '
            f'{", ".join(sorted(reader.extensions))}); put images there, or '
            'remove the folder'
        )
    return classes
