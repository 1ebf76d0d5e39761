"""Putting an exported file in the place of a config's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from mmefficientmod.config.nodes import ConfigError, find_model
from mmefficientmod.config.toolbox import model_dict, toolbox_of
from mmefficientmod.deploy.exported.base import (
    adapted_preprocessor,
    shared_file,
)
from mmefficientmod.deploy.files import ExportedFile
from mmefficientmod.messages import list_some

TASKS = dict(mmpretrain='cls', mmseg='seg', mmdet='det')


def use_exported(
    cfg: Config, path: str, threads: int | None = None
) -> ExportedFile:
    """Have the tests and predictions of a config run an exported file.

    Args:
        cfg: The config, changed in place.
        path: The file.
        threads: CPU threads. Default: the library's choice.

    Returns:
        The file.

    Raises:
        ConfigError: If the file cannot be read, or is of another task.
    """
    file = shared_file(path, threads)
    scope = toolbox_of(cfg)
    task = file.described('task')
    if task != TASKS[scope]:
        raise ConfigError(
            f'{path} '
            + (
                'has no description by tools/export.py'
                if task is None
                else f'is an export of the kind {task}'
            )
            + f', and a config of {scope} needs one of the kind {TASKS[scope]}'
        )
    model = find_model(cfg)
    given = model_dict(cfg).get('data_preprocessor')
    preprocessor = adapted_preprocessor(
        model.get('data_preprocessor') or given, file.raw
    )
    new: dict[str, Any] = dict(
        file=str(path), threads=threads, data_preprocessor=preprocessor
    )
    if scope == 'mmpretrain':
        new['type'] = 'mmefficientmod.ExportedClassifier'
        if preprocessor:
            preprocessor.setdefault('type', 'ClsDataPreprocessor')
        head = model.get('head') or {}
        if head.get('thr') is not None:
            new['threshold'] = head['thr']
    elif scope == 'mmseg':
        new['type'] = 'mmefficientmod.ExportedSegmentor'
        head = _last(model.get('decode_head'))
        new.update(
            num_classes=_channels(head),
            test_cfg=model.get('test_cfg'),
            align_corners=head.get('align_corners', False),
        )
        if head.get('threshold') is not None:
            new['threshold'] = head['threshold']
    else:
        new['type'] = 'mmefficientmod.ExportedDetector'
        rcnn = (model.get('test_cfg') or {}).get('rcnn') or {}
        if 'mask_thr_binary' in rcnn:
            new['mask_threshold'] = rcnn['mask_thr_binary']
    cfg.model = ConfigDict(new)
    cfg.pop('data_preprocessor', None)
    return file


def check_file_classes(file: ExportedFile, dataset: Any) -> None:
    """Compare the classes of a file with those of the test data.

    Args:
        file: The file.
        dataset: The data set, built.

    Raises:
        ConfigError: If their numbers differ.
    """
    classes = file.described('classes') or []
    meta = getattr(dataset, 'metainfo', None) or {}
    names = list(meta.get('classes') or [])
    if classes and names and len(classes) != len(names):
        raise ConfigError(
            f'{file.path} predicts {len(classes)} classes '
            f'({list_some(classes)}), and the test data has {len(names)} '
            f'({list_some(names)})'
        )


def _last(heads: Any) -> Mapping[str, Any]:
    """The head that decides, of one or of a cascade."""
    if isinstance(heads, (list, tuple)):
        return heads[-1]
    return heads or {}


def _channels(head: Mapping[str, Any]) -> int:
    """Number of logits of a segmentor's head."""
    return head.get('out_channels') or head.get('num_classes') or 1
