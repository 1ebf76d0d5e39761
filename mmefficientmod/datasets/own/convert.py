"""YOLO, Pascal VOC and labelme files as one file in COCO's format.

The library ``supervision`` reads them. Here their folders are found, and
what it reads from several folders gets one list of classes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmefficientmod.atomic import write_folder
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import IMAGE_SUFFIXES
from mmefficientmod.messages import shorten

from .layout import (
    SPLITS,
    list_files,
    prepared_folder,
    split_of_path,
    stamp,
)

# Files that name the classes of YOLO's labels, besides `.yaml` files.
YOLO_NAMES = ('classes.txt', 'obj.names')
# As in setup.py. This release was tried.
INSTALL = "pip install 'supervision>=0.31'"


@dataclass(frozen=True)
class Part:
    """Images in a folder, and their annotation files in a folder."""

    images: str
    annotations: str


@dataclass(frozen=True)
class Source:
    """Annotation files that were found.

    Attributes:
        layout: Their format, for messages.
        names_from: Where the names of the classes come from, for messages.
        files: All files that the result depends on, relative to the folder.
        parts: The folders.
        read: Reads a part with ``supervision``, given the folder of the
            data, the part, and the class ``DetectionDataset``.
    """

    layout: str
    names_from: str
    files: list[str]
    parts: list[Part]
    read: Callable[[Path, Part, Any], Any]


def find_source(root: Path) -> Source | None:
    """Find annotation files of YOLO, Pascal VOC or labelme.

    Args:
        root: The folder.
    """
    return _find_yolo(root) or _find_voc(root) or _find_labelme(root)


def _find_yolo(root: Path) -> Source | None:
    names = _yolo_names(root)
    if names is None:
        return None
    texts = list_files(root, ['.txt'])
    stems = {str(PurePosixPath(x).with_suffix('')) for x in texts}
    parts = {}
    for image in list_files(root, IMAGE_SUFFIXES):
        path = PurePosixPath(image)
        # The last `images` of the path is `labels` for the annotations.
        pieces = list(path.parent.parts)
        if 'images' in pieces:
            last = len(pieces) - 1 - pieces[::-1].index('images')
            pieces[last] = 'labels'
        labels = str(PurePosixPath(*pieces))
        if str(PurePosixPath(labels, path.stem)) in stems:
            parts[str(path.parent)] = labels
    if not parts:
        return None
    return Source(
        layout='YOLO labels',
        names_from=names,
        files=[names, *(x for x in texts if _inside(x, {*parts.values()}))],
        parts=[Part(images, labels) for images, labels in parts.items()],
        read=partial(_read_yolo, names),
    )


def _yolo_names(root: Path) -> str | None:
    """The file with the names of YOLO's classes."""
    for name in list_files(root, ['.yaml', '.yml']):
        try:
            content = yaml.safe_load((root / name).read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(content, Mapping) and 'names' in content:
            return name
    return next((n for n in YOLO_NAMES if (root / n).is_file()), None)


def _read_yolo(names: str, root: Path, part: Part, reader: Any) -> Any:
    with tempfile.TemporaryDirectory() as place:
        path = root / names
        if path.suffix not in ('.yaml', '.yml'):
            lines = [x.strip() for x in path.read_text().splitlines()]
            path = Path(place, 'data.yaml')
            path.write_text(yaml.safe_dump(dict(names=[*filter(None, lines)])))
        return reader.from_yolo(
            str(root / part.images), str(root / part.annotations), str(path)
        )


def _inside(name: str, folders: set[str]) -> bool:
    return str(PurePosixPath(name).parent) in folders


def _find_voc(root: Path) -> Source | None:
    files = [
        name
        for name in list_files(root, ['.xml'])
        if '<object>' in (root / name).read_text(errors='replace')
        or '<annotation' in (root / name).read_text(errors='replace')[:200]
    ]
    images = _by_stem(root)
    parts = {}
    for name in files:
        path = PurePosixPath(name)
        for image in images.get(path.stem, []):
            if split_of_path(image) == split_of_path(name):
                parts[str(PurePosixPath(image).parent)] = str(path.parent)
    if not parts:
        return None
    lists = [x for x in list_files(root, ['.txt']) if 'Main' in x]
    return Source(
        layout='Pascal VOC annotations',
        names_from='the annotations',
        files=[*files, *lists],
        parts=[Part(i, a) for i, a in parts.items()],
        read=lambda folder, part, reader: reader.from_pascal_voc(
            str(folder / part.images), str(folder / part.annotations)
        ),
    )


def _by_stem(root: Path) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {}
    for name in list_files(root, IMAGE_SUFFIXES):
        if 'Segmentation' not in name:
            images.setdefault(PurePosixPath(name).stem, []).append(name)
    return images


def _find_labelme(root: Path) -> Source | None:
    files = [
        name
        for name in list_files(root, ['.json'])
        if b'"shapes"' in (text := (root / name).read_bytes())
        and b'"imagePath"' in text
    ]
    if not files:
        return None
    images = _by_stem(root)
    parts = {}
    for name in files:
        content = json.loads((root / name).read_text(encoding='utf-8-sig'))
        image = str(content['imagePath']).replace('\\', '/')
        for found in images.get(PurePosixPath(image).stem, []):
            folder = str(PurePosixPath(name).parent)
            if split_of_path(found) == split_of_path(name):
                parts[folder] = str(PurePosixPath(found).parent)
    if not parts:
        raise DataError(
            f'{root} has files of labelme, and not their images (first: '
            f'{files[0]}); put the images beside the files'
        )
    return Source(
        layout='labelme files',
        names_from='the labels in the files',
        files=files,
        parts=[Part(images, folder) for folder, images in parts.items()],
        read=lambda folder, part, reader: reader.from_labelme(
            str(folder / part.images), str(folder / part.annotations)
        ),
    )


def convert(root: Path, source: Source) -> dict[str, Path]:
    """Write annotations in COCO's format, if that was not done before.

    Args:
        root: The folder.
        source: What was found in it.

    Returns:
        A file for each split; one with the key ``''`` if there are none.

    Raises:
        DataError: If ``supervision`` is not installed, or an annotation
            cannot be read.
    """

    def write(draft: Path) -> None:
        for split, content in _read(root, source).items():
            (draft / f'{split or "all"}.json').write_text(json.dumps(content))

    target = prepared_folder(root, source.layout, stamp(root, source.files))
    folder = write_folder(target, write)
    files = {path.stem: path for path in sorted(folder.glob('*.json'))}
    if {*files} <= {'all', 'train'}:
        return {'': next(iter(files.values()))}
    return {split: files[split] for split in SPLITS if split in files}


def _read(root: Path, source: Source) -> dict[str, dict[str, Any]]:
    try:
        from supervision import DetectionDataset
    except ImportError:
        raise DataError(
            f'{root} has {source.layout}, which the library supervision '
            f'converts, and it is not installed: {INSTALL}'
        ) from None
    contents: dict[str, list[dict]] = {}
    start = dict(starting_image_id=1, starting_annotation_id=1)
    for part in source.parts:
        try:
            data = source.read(root, part, DetectionDataset)
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, 'coco.json')
                counts = data.as_coco(annotations_path=str(path), **start)
                content = json.loads(path.read_text())
        except (KeyError, OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f'supervision cannot read the {source.layout} in '
                f'{root / part.annotations}: {shorten(str(error))}'
            ) from error
        start = dict(zip(start, counts, strict=True))
        for image in content['images']:
            name = PurePosixPath(part.images, image['file_name'])
            image['file_name'] = str(name)
        split = split_of_path(f'{part.images}/x') or ''
        contents.setdefault(split, []).append(content)
    classes = _merge_classes(c for x in contents.values() for c in x)
    merged = {k: _merge(v, classes) for k, v in contents.items()}
    if {*merged} == {''}:
        return dict(_by_lists(root, merged['']))
    merged.pop('', None)
    return merged


def _merge_classes(contents) -> list[str]:
    """All names, in the order of the first file, then of the others."""
    names: dict[str, None] = {}
    for content in contents:
        names.update((c['name'], None) for c in content['categories'])
    return list(names)


def _merge(contents: Sequence[dict], classes: Sequence[str]) -> dict:
    ids = {name: i for i, name in enumerate(classes, 1)}
    objects = []
    for content in contents:
        names = {c['id']: c['name'] for c in content['categories']}
        objects += [
            {**x, 'category_id': ids[names[x['category_id']]]}
            for x in content['annotations']
        ]
    return dict(
        info={},
        images=[image for c in contents for image in c['images']],
        categories=[dict(id=i, name=name) for name, i in ids.items()],
        annotations=objects,
    )


def _by_lists(root: Path, content: dict) -> Iterator[tuple[str, dict]]:
    """Parts of the content, by the lists in Pascal VOC's ``ImageSets``."""
    found = False
    lists = {
        PurePosixPath(name).stem: root / name
        for name in list_files(root, ['.txt'])
        if PurePosixPath(name).parent.name == 'Main'
    }
    for split in SPLITS:
        if split not in lists:
            continue
        lines = lists[split].read_text().splitlines()
        stems = {line.split()[0] for line in lines if line.strip()}
        images = [
            image
            for image in content['images']
            if PurePosixPath(image['file_name']).stem in stems
        ]
        ids = {image['id'] for image in images}
        objects = [x for x in content['annotations'] if x['image_id'] in ids]
        if images:
            found = True
            yield split, {**content, 'images': images, 'annotations': objects}
    if not found:
        yield '', content
