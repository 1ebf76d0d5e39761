"""MMDetection's data sets in COCO's format: classes against the file."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from mmefficientmod.config.class_checks import metainfo, registered
from mmefficientmod.config.nodes import type_name, walk
from mmefficientmod.datasets.annotation_files import AnnotationFiles
from mmefficientmod.datasets.checks import join_root
from mmefficientmod.datasets.coco import CocoSummary
from mmefficientmod.datasets.images import describe_missing, missing_files
from mmefficientmod.findings import Findings
from mmefficientmod.messages import did_you_mean, list_some


def reads_coco(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set reads its files as ``CocoDataset`` does.

    Args:
        dataset: The dict of the data set.
    """
    kind = registered(DATASETS, dataset.get('type'))
    if kind is None:
        return False
    # MMDetection need not be installed for the other toolboxes.
    if not any(x.__module__.startswith('mmdet.') for x in kind.__mro__):
        return False
    from mmdet.datasets import CocoDataset

    return (
        issubclass(kind, CocoDataset)
        and kind.load_data_list is CocoDataset.load_data_list
    )


def ann_path(dataset: Mapping[str, Any]) -> str:
    """Path of the annotation file of a data set.

    Args:
        dataset: The dict of the data set.
    """
    return join_root(dataset, dataset.get('ann_file') or '')


def image_folder(dataset: Mapping[str, Any]) -> str:
    """The folder to which the names in the annotation file are relative.

    Args:
        dataset: The dict of the data set.
    """
    return join_root(
        dataset, (dataset.get('data_prefix') or {}).get('img', '')
    )


def check_coco_dataset(
    dataset: ConfigDict, files: AnnotationFiles, owner: str, trains: bool
) -> Findings:
    """Compare a data set in a config with its annotation file and images.

    Args:
        dataset: The dict of the data set.
        files: The annotation files.
        owner: Name of the data set in messages, such as ``CocoDataset of
            train_dataloader``.
        trains: Whether the data set is trained on.

    Raises:
        DataError: If the file cannot be read.
    """
    findings = Findings()
    prefix = dataset.get('data_prefix') or {}
    if not isinstance(prefix, Mapping):
        findings.errors.append(
            f'{owner}: data_prefix={prefix!r} is no dict; write '
            f'data_prefix=dict(img={prefix!r})'
        )
        return findings
    path = ann_path(dataset)
    summary = files.summary(path)
    findings.add(summary.findings)
    if findings.errors:
        return findings
    classes = metainfo(dataset).get('classes') or ()
    if classes and summary.names:
        findings.errors += _compare_classes(classes, summary, owner)
    images = files.content(path)['images']
    if not images:
        findings.errors.append(f'{path} has no images')
    if not findings.errors:
        folder = image_folder(dataset)
        paths = [os.path.join(folder, x['file_name']) for x in images]
        findings.warnings += _repeated_files(images, path)
        missing = missing_files(paths) if '://' not in folder else []
        if missing:
            findings.errors.append(
                describe_missing(missing, len(paths), str(path))
            )
        _check_objects(dataset, summary, classes, trains, findings)
    return findings


def _repeated_files(images: Sequence[Mapping], path: str) -> list[str]:
    names = Counter(x['file_name'] for x in images)
    twice = [name for name, number in names.items() if number > 1]
    if not twice:
        return []
    return [
        f'{path}: {len(twice)} image files have several entries in images '
        f'({list_some(twice, 2)}); the objects of one entry are background '
        'in the other, so merge these entries'
    ]


def check_left_out(
    dataset: Any, files: AnnotationFiles, owner: str
) -> Findings:
    """Count the images that a built data set leaves out of a training.

    Args:
        dataset: The data set, without wrappers.
        files: The annotation files.
        owner: Its name in messages.
    """
    findings = Findings()
    path = getattr(dataset, 'ann_file', '')
    rule = getattr(dataset, 'filter_cfg', None)
    if (
        not rule
        or not isinstance(path, str)
        or dataset.test_mode
        or dataset._indices is not None
    ):
        return findings
    if path in files:
        number = len(files.content(path)['images'])
        left_out = number - len(dataset)
        if left_out > 0:
            findings.warnings.append(
                f'{owner}: {left_out} of {number} images of {path} are not '
                f'trained on, since filter_cfg={dict(rule)} leaves out images '
                'without an object of the classes (filter_empty_gt) or with '
                'a side of fewer pixels (min_size)'
            )
    return findings


def _compare_classes(
    classes: Sequence[str], summary: CocoSummary, owner: str
) -> list[str]:
    """What is wrong with the classes of a config.

    MMDetection numbers the labels in the order of the file's categories, and
    drops objects of other categories.
    """
    fixed = f'metainfo=dict(classes={summary.names!r})'
    if len(summary.names) > 8:
        fixed = 'metainfo.classes in the order of the file'
    unknown = [c for c in classes if c not in summary.names]
    if unknown:
        hint = _same_look(str(unknown[0]), summary.names) or did_you_mean(
            str(unknown[0]), summary.names
        )
        return [
            f'{owner}: {list_some(map(repr, unknown))} in its classes is no '
            f'category of {summary.path}, which has '
            f'{list_some(map(repr, summary.names), 8)}{hint}. Set {fixed}'
        ]
    in_file = [name for name in summary.names if name in set(classes)]
    if in_file != list(classes):
        wrong = next(
            (a, b) for a, b in zip(classes, in_file, strict=False) if a != b
        )
        return [
            f'{owner}: its classes have another order than the categories '
            f'of {summary.path}, and MMDetection numbers the labels in the '
            f'order of the file: {wrong[1]!r} would be called {wrong[0]!r}. '
            f'Set {fixed}'
        ]
    return []


def _same_look(name: str, known: Sequence[str]) -> str:
    """A hint if a name differs by what is not seen on a screen."""

    def shown(text: str) -> str:
        return ' '.join(unicodedata.normalize('NFKC', text).split())

    alike = next((x for x in known if shown(x) == shown(name)), None)
    if alike is None:
        return ''
    return (
        f'; {name!a} and {alike!a} differ in spaces or in the Unicode form '
        'of a letter alone'
    )


def _check_objects(
    dataset: ConfigDict,
    summary: CocoSummary,
    classes: Sequence[str],
    trains: bool,
    findings: Findings,
) -> None:
    """Whether objects are left, and which are not used."""
    path = summary.path
    chosen = classes or summary.names
    usable = sum(summary.num_objects.get(name, 0) for name in chosen)
    masks = needs_masks(dataset)
    without_mask = summary.without_mask if masks else []
    number = sum(summary.num_objects.values())
    number += sum(map(len, summary.unusable.values()))
    for reason, ids in summary.unusable.items():
        findings.warnings.append(
            f'{path}: {len(ids)} of {number} annotations are not used, since '
            f'{reason} (annotation {list_some(ids)})'
        )
    if without_mask:
        sentence = (
            f'{path}: {len(without_mask)} of {usable} objects have no mask '
            f'(annotation {list_some(without_mask)}), and the pipeline loads '
            'masks'
        )
        if len(without_mask) == sum(summary.num_objects.values()):
            findings.errors.append(
                f'{sentence}; take a detector of boxes, such as RetinaNet, '
                'or export the segmentation as well'
            )
            return
        effect = 'ignored' if trains else 'missed objects in the AP of masks'
        findings.warnings.append(f'{sentence}; these objects are {effect}')
    if trains and not usable:
        reasons = ''.join(
            f'; {len(ids)} are not used, since {reason} '
            f'(annotation {list_some(ids)})'
            for reason, ids in summary.unusable.items()
        )
        findings.errors.append(
            f'{path} has no object to train on: of {number} annotations, none '
            f'is of the classes {list_some(map(repr, chosen), 8)} and usable'
            f'{reasons}'
        )
        return
    other = [name for name in summary.names if name not in set(chosen)]
    dropped = sum(summary.num_objects.get(name, 0) for name in other)
    if dropped:
        findings.warnings.append(
            f'{path}: {dropped} objects of other classes are not used: '
            f'{list_some(map(repr, other), 8)}'
        )
    empty = [n for n in chosen if not summary.num_objects.get(n, 0)]
    if usable and empty:
        findings.warnings.append(
            f'{path}: {len(empty)} of {len(chosen)} classes have no object: '
            f'{list_some(map(repr, empty), 8)}'
            + ('' if trains else '; their AP is -1 and left out of the mean')
        )


def needs_masks(dataset: Mapping[str, Any]) -> bool:
    """Whether the pipeline of a data set loads masks of objects.

    Args:
        dataset: The dict of the data set.
    """
    return any(
        type_name(step).startswith('LoadAnnotations') and step.get('with_mask')
        for step in walk(dataset.get('pipeline'))
    )
