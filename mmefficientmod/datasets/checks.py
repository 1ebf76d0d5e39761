"""Checks that name the file at fault, in place of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose

from mmefficientmod.config.nodes import dataset_dicts, type_name


class DataError(RuntimeError):
    """A file of a data set is missing, cannot be loaded or has bad labels."""


def check_data_exists(cfg: Config, loaders: Sequence[str]) -> None:
    """Check that the folders and files that a config names exist.

    Args:
        cfg: The config.
        loaders: Names of the data loaders to check, such as
            ``train_dataloader``.

    Raises:
        DataError: If a folder or file is missing, or a folder of images is
            empty. The message names the first such path and the remedy.
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
                # On a server, or a data set that downloads its files.
                continue
            for path in [root, *(Path(root, n) for n in names)]:
                if path and not Path(path).exists():
                    raise DataError(
                        f'{type_name(dataset)} of {loader}: {path} does not '
                        'exist. Put the data set there, name its folder with '
                        '`--cfg-options data_root=...`, or use generated '
                        'data with `--mini`'
                    )
            images = prefixes.get('img_path') or prefixes.get('img')
            folder = Path(root, images) if images else None
            if folder and folder.is_dir() and not any(folder.iterdir()):
                raise DataError(
                    f'{type_name(dataset)} of {loader}: {folder} is empty'
                )


def name_file_on_error(dataset: Any) -> None:
    """Make a data set raise `DataError` with the file that it cannot load.

    Labels of a segmentation map that are no class of the data set raise it,
    too. Otherwise they would end as "index out of bounds" or, on a GPU, as a
    device-side assertion that kills the process.

    Args:
        dataset: The data set or a wrapper of data sets, changed in place. Call
            this before the data loader copies it to worker processes.
    """
    for inner in getattr(dataset, 'datasets', []):
        name_file_on_error(inner)
    if hasattr(dataset, 'dataset'):
        name_file_on_error(dataset.dataset)
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(pipeline, Compose):
        classes = getattr(dataset, 'metainfo', {}).get('classes') or ()
        pipeline.transforms = [
            t if isinstance(t, _Checked) else _Checked(t, len(classes))
            for t in pipeline.transforms
        ]


class _Checked:
    """A transform whose errors name the file."""

    def __init__(self, transform: Callable, num_classes: int) -> None:
        self.transform = transform
        self.num_classes = num_classes

    def __getattr__(self, name: str) -> Any:
        # All other attributes are those of the transform.
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
        # Only MMSegmentation sets `reduce_zero_label`. The maps that
        # MMDetection loads have other labels than the classes of the data set.
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
        bad = labels[(labels >= self.num_classes) & (labels != 255)]
        if not bad.size:
            return
        label = int(bad[0])
        accepted = f'0 to {self.num_classes - 1}'
        if results['reduce_zero_label']:
            # Labels in the file are one higher than those loaded.
            label += 1
            accepted = f'0 (ignored) and 1 to {self.num_classes}'
        raise DataError(
            f'{file} has the label {label}; the data set has the labels '
            f'{accepted}, and 255 is ignored'
        )


def _files(results: Mapping[str, Any]) -> str:
    found = [
        f'{name} {results[key]}'
        for key, name in (
            ('img_path', 'image'),
            ('seg_map_path', 'annotation'),
        )
        if isinstance(results.get(key), str)
    ]
    return ', '.join(found) or 'a sample'
