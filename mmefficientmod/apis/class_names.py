"""Names and colours of the classes that a model predicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from torch import nn

from mmefficientmod.config.class_checks import registered
from mmefficientmod.config.nodes import LOADERS, dataset_dicts
from mmefficientmod.datasets.own.names import Colour, distinct_colours


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: Their names, one for each label.
        palette: Their colours, RGB.
        remark: A sentence for the user if names were made up; else empty.
    """

    names: tuple[str, ...]
    palette: list[Colour]
    remark: str = ''


def dataset_meta(checkpoint: Any) -> dict[str, Any]:
    """What a checkpoint says about the data that its model was trained on.

    Args:
        checkpoint: Content of the file.

    Returns:
        The dict ``dataset_meta`` of MMEngine with names in lower case; of a
        checkpoint of mmcv 1, ``classes`` and ``palette``; or an empty dict.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    found = meta.get('dataset_meta')
    if not isinstance(found, Mapping) or not found:
        found = {k: meta[k] for k in ('CLASSES', 'PALETTE') if meta.get(k)}
    return {str(key).lower(): value for key, value in found.items()}


def find_classes(
    cfg: Config, meta: Mapping[str, Any], num_classes: int | None
) -> Classes:
    """Names and colours of a model's classes.

    Names come from the first of these that has them:

    1. the checkpoint,
    2. ``metainfo`` of the data of the test, the validation or the training,
    3. the class of that data, if it has as many names as the model has
       classes: a config for other data may still name it.

    The first two may have fewer names than the model has classes, not more.
    Without names, the classes are called ``class 0``, ``class 1`` and so on.
    Colours come from the same place, else from another one with the same
    names, else they are spread over the circle of hues.

    Args:
        cfg: The config.
        meta: From :func:`dataset_meta`.
        num_classes: From :func:`count_classes`.
    """
    datasets = [
        d
        for name in ('test_dataloader', 'val_dataloader', *LOADERS)
        for d in dataset_dicts(cfg, name)
    ]
    given = [_read(meta), *map(_of_config, datasets)]
    classes = [_of_class(d) for d in datasets]
    names: tuple[str, ...] = ()
    for found, _ in given:
        if found and (num_classes is None or len(found) <= num_classes):
            names = found
            break
    else:
        same = [n for n, _ in classes if n and len(n) == num_classes]
        names = same[0] if same else ()
    missing = range(len(names), max(num_classes or 0, len(names)))
    full = names + tuple(f'class {i}' for i in missing)
    palettes = [p for n, p in (*given, *classes) if n == names and names]
    palette = next((p for p in palettes if len(p) >= len(full)), None)
    remark = ''
    if missing and names:
        remark = (
            f'the model has {len(full)} classes, of which only {len(names)} '
            f'have names; the others are called class {missing[0]} and so on'
        )
    elif missing:
        remark = (
            'neither the checkpoint nor the config names the '
            f'{len(full)} classes of the model; they are called class 0, '
            'class 1 and so on'
        )
    palette = palette[: len(full)] if palette else distinct_colours(len(full))
    return Classes(full, palette, remark)


def _read(meta: Any) -> tuple[tuple[str, ...], list[Colour]]:
    """Names and colours in a dict; empty where it has none that are valid."""
    meta = meta if isinstance(meta, Mapping) else {}
    names = meta.get('classes')
    if isinstance(names, str):  # a file with a name in each line
        names = list_from_file(names) if os.path.isfile(names) else ()
    if not isinstance(names, Sequence):
        names = ()
    palette = meta.get('palette')
    if not isinstance(palette, Sequence) or isinstance(palette, str):
        palette = ()
    colours = [tuple(map(int, c)) for c in palette if len(c) == 3]
    return tuple(map(str, names)), colours  # type: ignore[return-value]


def _of_config(dataset: Mapping) -> tuple[tuple[str, ...], list[Colour]]:
    meta = dataset.get('metainfo')
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    # MMPretrain's data sets have an argument of their own.
    return _read({'classes': dataset.get('classes'), **meta})


def _of_class(dataset: Mapping) -> tuple[tuple[str, ...], list[Colour]]:
    cls = registered(DATASETS, dataset.get('type'))
    return _read(getattr(cls, 'METAINFO', None))


def count_classes(model: nn.Module) -> int | None:
    """The number of classes that a model predicts.

    Args:
        model: A detector, segmentor or classifier, or a wrapper of one.

    Returns:
        The number, for panoptic models that of things and stuff; None if the
        heads do not say it.
    """
    for name in ('detector', 'student', 'segmentor', 'module'):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return count_classes(inner)
    for path in (
        'panoptic_fusion_head', 'roi_head.bbox_head', 'bbox_head',
        'decode_head', 'mask_head', 'head', 'rpn_head',
    ):  # fmt: skip
        head: Any = model
        for name in path.split('.'):
            head = getattr(head, name, None)
        if isinstance(head, nn.ModuleList):  # of a cascade
            head = head[-1] if len(head) else None
        number = getattr(head, 'num_classes', None)
        if isinstance(number, int):
            return number
        if path == 'head' and isinstance(head, nn.Module):
            layers = [m for m in head.modules() if isinstance(m, nn.Linear)]
            return layers[-1].out_features if layers else None
    return None
