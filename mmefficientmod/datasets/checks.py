"""Checks of the data, so that a bad file is named and not a stack trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose

from mmefficientmod.config.nodes import dataset_dicts, type_name


class DataError(RuntimeError):
    """The data set is not there, or one of its files is not what it is."""


def check_data_exists(cfg: Config, loaders: Sequence[str]) -> None:
    """Check that the folders and files that a config names are there.

    Args:
        cfg: The config.
        loaders: Names of data loaders to check.

    Raises:
        DataError: Naming the first that is missing, and the remedy.
    """
    for loader in loaders:
        for dataset in dataset_dicts(cfg, loader):
            root = dataset.get('data_root') or ''
            prefixes = dataset.get('data_prefix') or {}
            if isinstance(prefixes, str):
                prefixes = {'img_path': prefixes}
            if not prefixes and type_name(dataset) == 'ImageNet':
                prefixes = {'img_path': dataset.get('split')}
            names = [*prefixes.values(), dataset.get('ann_file')]
            names = [n for n in names if isinstance(n, str) and n]
            if '://' in root or not names:
                continue  # elsewhere, or a data set that fetches itself
            for path in [root, *(Path(root, n) for n in names)]:
                if path and not Path(path).exists():
                    raise DataError(
                        f'{type_name(dataset)} of {loader}: {path} does not '
                        'exist. Put the data set there or name another place '
                        f'with `--cfg-options {_root_option(cfg, loader)}=...`'
                        ', or try a config that has one on generated data '
                        'with `--mini`'
                    )
            images = prefixes.get('img_path') or prefixes.get('img')
            folder = Path(root, images) if images else None
            if folder and folder.is_dir() and not any(folder.iterdir()):
                raise DataError(
                    f'{type_name(dataset)} of {loader}: {folder} is empty'
                )


def _root_option(cfg: Config, loader: str) -> str:
    return 'data_root' if 'data_root' in cfg else f'{loader}.dataset.data_root'


def guard(dataset: Any) -> None:
    """Have a data set name the file when loading a sample fails.

    Labels of a segmentation map that the data set has no class for are
    refused, too. They would end as "index out of bounds" or, on a GPU, as a
    device-side assertion that kills the process.

    Args:
        dataset: The data set or a wrapper of data sets, changed in place. Do
            it before worker processes get their copy.
    """
    for inner in getattr(dataset, 'datasets', []):
        guard(inner)
    if hasattr(dataset, 'dataset'):
        guard(dataset.dataset)
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(pipeline, Compose):
        classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
        pipeline.transforms = [
            t if isinstance(t, _Checked) else _Checked(t, len(classes))
            for t in pipeline.transforms
        ]


class _Checked:
    """A transform that names the file where it fails."""

    def __init__(self, transform: Callable, num_classes: int) -> None:
        self.transform = transform
        self.num_classes = num_classes

    def __getattr__(self, name: str) -> Any:
        # Anything else that is asked of the transform, it answers itself.
        if name.startswith('__') or name == 'transform':
            raise AttributeError(name)
        return getattr(self.transform, name)

    def __repr__(self) -> str:
        return repr(self.transform)

    def __call__(self, results: dict) -> dict | None:
        name = type(self.transform).__name__
        if not name.startswith('Load'):
            return self.transform(results)
        try:
            output = self.transform(results)
        except Exception as error:
            raise DataError(
                f'{name} failed on {_files(results)}: '
                f'{type(error).__name__}: {error}'
            ) from error
        # MMSegmentation says how its labels count; MMDetection's maps of
        # stuff have classes of their own.
        if output and 'reduce_zero_label' in output and self.num_classes:
            self._check_labels(output)
        return output

    def _check_labels(self, results: dict) -> None:
        labels = results.get('gt_seg_map')
        if labels is None:
            return
        file = results.get('seg_map_path', 'the annotation')
        if labels.ndim != 2:
            raise DataError(
                f'{file} has the shape {labels.shape}; an annotation has one '
                'channel, whose values are the labels'
            )
        shift = int(bool(results['reduce_zero_label']))
        bad = labels[(labels >= self.num_classes) & (labels != 255)]
        if bad.size:
            raise DataError(
                f'{file} has the label {int(bad[0]) + shift}; the data set '
                f'has the labels {0 if shift else ""}'
                f'{" (ignored) and 1 to " if shift else "0 to "}'
                f'{self.num_classes - 1 + shift}, and 255 is ignored'
            )


def _files(results: Mapping[str, Any]) -> str:
    found = [
        f'{what} {results[key]}'
        for key, what in (
            ('img_path', 'image'),
            ('seg_map_path', 'annotation'),
        )
        if isinstance(results.get(key), str)
    ]
    return ', '.join(found) or 'a sample'
