"""Annotation files in COCO's format: reading, and what is wrong in them.

The rules by which an object takes part in a training are those of
MMDetection's ``CocoDataset``.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.coco_masks import (
    has_mask,
    is_bad_rle,
    is_drawn,
    is_well_formed,
)
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some

# Keys that MMDetection and pycocotools read of each entry.
IMAGE_KEYS = ('id', 'file_name', 'width', 'height')
CATEGORY_KEYS = ('id', 'name')
OBJECT_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
# What to do about a missing key.
REMEDIES = dict(
    area='write its area in square pixels, for a box without a mask '
    'width * height; COCO computes AP of small, medium and large objects '
    'with it',
    bbox='write [x, y, width, height] in pixels',
)


def read_coco(path: str | Path) -> dict[str, Any]:
    """Read an annotation file in COCO's format.

    A byte-order mark is passed over. Entries with an obvious value are
    added: ``info``, and ``iscrowd=0`` in objects that have no ``iscrowd``.

    Args:
        path: The file.

    Returns:
        Its content, with the lists ``images`` and ``categories``, and
        ``annotations`` if the file has them.

    Raises:
        DataError: If the file cannot be read, is no JSON, or is not of this
            format.
    """
    try:
        with open(path, encoding='utf-8-sig') as file, without_gc():
            content = json.load(file)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path} is no text in UTF-8 (byte {error.start}); an annotation '
            f"file in COCO's format is JSON{_packed(path)}"
        ) from error
    except json.JSONDecodeError as error:
        if error.doc.startswith('version https://git-lfs'):
            raise DataError(
                f'{path} is a pointer of Git LFS in place of the file; '
                '`git lfs pull` fetches it'
            ) from error
        ending = error.pos >= len(error.doc.rstrip()) - 1
        raise DataError(
            f'{path}, line {error.lineno}, column {error.colno}: '
            + (
                'the file ends within the JSON text; it was cut off, copy or '
                'export it again'
                if ending
                else f'no JSON ({error.msg})'
            )
        ) from error
    except RecursionError as error:
        raise DataError(
            f"{path} is nested too deeply for a file in COCO's format"
        ) from error
    _check_structure(content, path)
    content.setdefault('info', {})  # newer pycocotools insist on it
    for annotation in content.get('annotations') or []:
        if annotation.get('iscrowd') is None:
            annotation['iscrowd'] = 0
    return content


def _packed(path: str | Path) -> str:
    with open(path, 'rb') as file:
        begin = file.read(2)
    return '; unpack this archive' if begin in (b'\x1f\x8b', b'PK') else ''


@contextmanager
def without_gc() -> Iterator[None]:
    """Inside the block, pause the garbage collector.

    It would look at all objects of a large file again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_structure(content: Any, path: str | Path) -> None:
    expected = (
        f"{path} is not in COCO's format, a dict with the lists images, "
        'annotations and categories: '
    )
    if not isinstance(content, dict):
        raise DataError(
            f'{expected}it is a {type(content).__name__}; export it again as '
            'COCO'
        )
    for key in ('images', 'categories', 'annotations'):
        if key not in content:
            # A test set has no annotations.
            if key == 'annotations':
                continue
            raise DataError(
                f'{expected}it has no {key!r}, but {list_some(content)}'
            )
        if not isinstance(content[key], list):
            raise DataError(
                f'{expected}{key!r} is a {type(content[key]).__name__}'
            )
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise DataError(
                    f'{expected}entry {number} of {key!r} is a '
                    f'{type(entry).__name__}'
                )


@dataclass
class CocoSummary:
    """What is in an annotation file.

    Attributes:
        path: The file.
        names: Names of the categories, in the order of the file.
        num_objects: Usable objects of each category, by its name.
        unusable: Ids of the objects that no training uses, by the reason.
        without_mask: Ids of usable objects without a mask.
        findings: What is wrong in the file as such.
    """

    path: str
    names: tuple[str, ...] = ()
    num_objects: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, list] = field(default_factory=dict)
    without_mask: list = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def summarise(content: Mapping[str, Any], path: str | Path) -> CocoSummary:
    """Look at every entry of an annotation file.

    Args:
        content: From :func:`read_coco`.
        path: Name of the file, for messages.
    """
    summary = CocoSummary(str(path))
    errors = summary.findings.errors
    objects = content.get('annotations') or []
    for kind, key, needed in (
        ('image', 'images', IMAGE_KEYS),
        ('category', 'categories', CATEGORY_KEYS),
        ('annotation', 'annotations', OBJECT_KEYS),
    ):
        entries = content.get(key) or []
        if kind == 'annotation' and _is_panoptic(entries):
            return summary
        errors += _missing_keys(entries, kind, needed, path)
        errors += _repeated(entries, kind, path)
    if errors:
        return summary
    errors += _bad_values(content['categories'], objects, path)
    summary.names = tuple(str(c['name']) for c in content['categories'])
    errors += _repeated_names(summary.names, path)
    errors += _bad_sizes(content['images'], path)
    if not errors and objects:
        _summarise_objects(summary, content, objects)
    return summary


def _is_panoptic(objects: Sequence[Mapping]) -> bool:
    return bool(objects) and 'segments_info' in objects[0]


def _missing_keys(
    entries: Sequence[Mapping],
    kind: str,
    needed: Sequence[str],
    path: str | Path,
) -> Iterable[str]:
    complete = set(needed)
    bad = [x for x in entries if not complete <= x.keys() or x['id'] is None]
    for key in needed:
        lacking = [
            x for x in bad if key not in x or (key == 'id' and x[key] is None)
        ]
        if lacking:
            first = lacking[0].get('id', lacking[0].get('name', '?'))
            remedy = REMEDIES.get(key)
            yield (
                f'{path}: {len(lacking)} of {len(entries)} {_plural(kind)} '
                f'have no {key!r} (first: {kind} {first})'
                + (f'; {remedy}' if remedy else '')
            )


def _repeated(
    entries: Sequence[Mapping], kind: str, path: str | Path
) -> Iterable[str]:
    ids = [x.get('id') for x in entries]
    try:
        repeated = len(set(ids)) < len(ids)
    except TypeError:
        yield f'{path}: an id of the {_plural(kind)} is a list or dict'
        return
    if repeated:
        twice = [i for i, n in Counter(ids).items() if n > 1 and i is not None]
        if twice:
            yield (
                f'{path}: {len(twice)} ids of {_plural(kind)} occur more '
                f'than once ({list_some(twice)}); each needs its own id'
            )


def _repeated_names(names: Sequence[str], path: str | Path) -> Iterable[str]:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        yield (
            f'{path}: several categories have the name '
            f'{list_some(map(repr, twice))}; the labels of the classes '
            'behind them would be shifted. Merge these categories'
        )


def _bad_values(
    categories: Sequence[Mapping], objects: Sequence[Mapping], path: str | Path
) -> Iterable[str]:
    """Names that are no text, and values of objects that are no number."""
    bad = [c for c in categories if not isinstance(c['name'], str)]
    if bad:
        yield (
            f'{path}: category {bad[0]["id"]} has the name '
            f'{bad[0]["name"]!r}, which is no text; MMDetection would not '
            'find it among its classes, so write it in quotes'
        )
    for key in ('image_id', 'category_id'):
        bad = [x for x in objects if isinstance(x[key], (list, dict))]
        if bad:
            yield (
                f'{path}: annotation {bad[0]["id"]} has the {key} '
                f'{bad[0][key]!r}; write one id'
            )
    for key in ('iscrowd', 'ignore'):
        bad = [x for x in objects if x.get(key) not in (None, 0, 1)]
        if bad:
            yield (
                f'{path}: {len(bad)} annotations have a value of {key!r} '
                f'that is neither 0 nor 1 (first: annotation {bad[0]["id"]}, '
                f'{bad[0][key]!r})'
            )


def _bad_sizes(images: Sequence[Mapping], path: str | Path) -> Iterable[str]:
    bad = [
        x
        for x in images
        if not _is_count(x['width'])
        or not _is_count(x['height'])
        or not isinstance(x['file_name'], str)
    ]
    if bad:
        x = bad[0]
        yield (
            f'{path}: {len(bad)} images have no name or no size in pixels '
            f'(first: image {x["id"]}, {x["file_name"]!r}, width '
            f'{x["width"]!r}, height {x["height"]!r})'
        )


def _is_count(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and math.isfinite(value) and value >= 1
    )


def _plural(kind: str) -> str:
    return 'categories' if kind == 'category' else f'{kind}s'


def _summarise_objects(
    summary: CocoSummary, content: Mapping[str, Any], objects: list
) -> None:
    path, errors = summary.path, summary.findings.errors
    images = {x['id']: x for x in content['images']}
    categories = {x['id']: i for i, x in enumerate(content['categories'])}
    boxes = _boxes(objects)
    if isinstance(boxes, str):
        errors.append(f'{path}: {boxes}')
        return
    not_finite = _not_finite(objects, boxes)
    if not_finite:
        first = not_finite[0]
        name = images.get(first['image_id'], {}).get('file_name', 'no image')
        errors.append(
            f'{path}: {len(not_finite)} annotations have NaN, an infinite '
            f'number or a wrong type as a coordinate or area (first: '
            f'annotation {first["id"]} of {name}); remove or correct these'
        )
        return
    unknown = [x for x in objects if x['category_id'] not in categories]
    if unknown:
        errors.append(
            f'{path}: {len(unknown)} annotations have a category_id that '
            f'is no id of the categories (first: annotation '
            f'{unknown[0]["id"]}, category_id {unknown[0]["category_id"]!r})'
            f'{_other_type(unknown[0]["category_id"], categories)}'
        )
        return
    ids = np.array([x['id'] for x in objects], dtype=object)
    nowhere = dict(width=1, height=1)
    places = [images.get(x['image_id'], nowhere) for x in objects]
    sizes = np.array([(p['width'], p['height']) for p in places], dtype=float)
    corner = boxes[:, :2] + boxes[:, 2:]
    inside = np.minimum(corner, sizes) - np.maximum(boxes[:, :2], 0)
    area = np.array([x['area'] for x in objects], dtype=float)
    crowd = np.array([bool(x.get('iscrowd')) for x in objects])
    ignored = np.array([bool(x.get('ignore')) for x in objects])
    small = (boxes[:, 2:] < 1).any(1) | (area <= 0)
    elsewhere = np.array([place is nowhere for place in places])
    hint = ''
    if elsewhere.any():
        hint = _other_type(objects[elsewhere.argmax()]['image_id'], images)
    reasons = {
        f'their image_id is no id of the images{hint}': elsewhere,
        'they are narrower or lower than a pixel, or their area is 0': small,
        'they are outside of their image': (inside <= 0).any(1),
        'they are marked as ignored': ignored,
        'they are crowds (iscrowd)': crowd,
    }
    usable = np.ones(len(objects), bool)
    for reason, is_so in reasons.items():
        chosen = is_so & usable
        if chosen.any():
            summary.unusable[reason] = list(ids[chosen])
        usable &= ~is_so
    labels = np.array([categories[x['category_id']] for x in objects])
    counts = np.bincount(labels[usable], minlength=len(categories))
    summary.num_objects = dict(
        zip(summary.names, counts.tolist(), strict=True)
    )
    bad_rle = [
        x['id']
        for x in objects
        if isinstance(x.get('segmentation'), dict)
        and is_bad_rle(x, images.get(x['image_id']))
    ]
    if bad_rle:
        errors.append(
            f'{path}: the masks (RLE) of {len(bad_rle)} annotations are '
            'damaged or have another size than their image (annotation '
            f'{list_some(bad_rle)})'
        )
        return
    summary.without_mask = [
        x['id']
        for x, used, place in zip(objects, usable, places, strict=True)
        if used and not (has_mask(x) and is_drawn(x, place))
    ]


def _other_type(value: Any, ids: Mapping[Any, Any]) -> str:
    """A hint if an id is text in one place and a number in another."""
    alike = next((x for x in ids if str(x) == str(value)), value)
    if alike == value:
        return ''
    return f', which has {alike!r} and not {value!r}; write both alike'


def _boxes(objects: Sequence[Mapping]) -> np.ndarray | str:
    """The boxes, ``(N, 4)``, or what is wrong with one."""
    try:
        boxes = np.array([x['bbox'] for x in objects])
        # Text that is a number would become one if asked for.
        if boxes.shape == (len(objects), 4) and boxes.dtype.kind in 'iuf':
            return boxes.astype(float)
    except ValueError:
        pass
    bad = next((x for x in objects if not _is_box(x['bbox'])), objects[0])
    return (
        f'annotation {bad["id"]} has the bbox {bad["bbox"]!r}; '
        f'{REMEDIES["bbox"]}'
    )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(x, (int, float)) for x in box)
    )


def _not_finite(objects: Sequence[Mapping], boxes: np.ndarray) -> list:
    """Annotations with a number that is not finite."""
    finite = np.isfinite(boxes).all(1)
    return [
        x
        for x, ok in zip(objects, finite, strict=True)
        if not (ok and _is_finite(x['area']) and is_well_formed(x))
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
