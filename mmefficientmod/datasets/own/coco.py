"""Own data for detection: COCO files, and where their images are."""

from __future__ import annotations

import json
import mmap
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmefficientmod.atomic import write_folder
from mmefficientmod.datasets.annotation_files import FILES
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.coco import summarise
from mmefficientmod.datasets.coco_masks import has_mask
from mmefficientmod.datasets.images import IMAGE_SUFFIXES
from mmefficientmod.messages import list_some

from .layout import (
    SPLITS,
    OwnData,
    Split,
    folder_names,
    hold_out,
    hold_out_note,
    list_files,
    prepared_folder,
    split_of,
    split_of_path,
)
from .names import distinct_colours


@dataclass
class _Reader:
    """Reads the files of a folder, and what has to be changed in them.

    Attributes:
        root: The folder.
        images: Its images, relative to it.
        classes: Names of the classes, in the order of the labels.
        notes: Sentences on what was found.
        changed: Contents that replace files, by the split.
        has_masks: Whether most objects have masks.
    """

    root: Path
    images: set[str]
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    has_masks: bool = True


def find_coco(root: Path) -> OwnData | None:
    """Find files in COCO's format, by their content, and their images.

    Args:
        root: The folder.

    Returns:
        What was found, None if it has no such file.

    Raises:
        DataError: If it is not clear which files are for training, if images
            are missing, or if a file cannot be read.
    """
    files = [
        name for name in list_files(root, ['.json']) if _is_coco(root / name)
    ]
    if not files:
        return None
    return read_files(root, _choose(root, files), 'COCO files')


def _is_coco(path: Path) -> bool:
    """Whether a file looks like COCO's, without parsing all of it."""
    if path.stat().st_size == 0:
        return False
    with open(path, 'rb') as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with text:
            return (
                text.find(b'"images"') >= 0
                and (
                    text.find(b'"annotations"') >= 0
                    or text.find(b'"categories"') >= 0
                )
                and text.find(b'"caption"') < 0
                and text.find(b'"segments_info"') < 0
            )


def _has_keypoints(path: Path) -> bool:
    with (
        open(path, 'rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        return text.find(b'"keypoints"') >= 0


def _choose(root: Path, files: Sequence[str]) -> dict[str, Path]:
    """The file of each split; one that is for all has the key ``''``."""
    by_split: dict[str, list[str]] = {}
    for name in files:
        by_split.setdefault(split_of_path(name) or '', []).append(name)
    if len(by_split) > 1:
        by_split.pop('', None)  # such as image_info_test-dev2017.json
    chosen = {}
    for split, names in by_split.items():
        # COCO has several files for the same images.
        plain = [n for n in names if not _has_keypoints(root / n)] or names
        instances = [n for n in plain if 'instances' in n] or plain
        if len(instances) > 1:
            raise DataError(
                f'{root} has several COCO files for '
                f'{split or "all splits"}: {list_some(instances)}. Put one '
                'file for each split there, with train, val or test in its '
                'name, or merge them'
            )
        chosen[split] = root / instances[0]
    return {'': chosen['train']} if {*chosen} == {'train'} else chosen


def read_files(
    root: Path,
    files: Mapping[str, Path],
    layout: str,
    names_from: str | None = None,
) -> OwnData:
    """Read files in COCO's format.

    A file is written anew, below :data:`~.layout.PREPARED`, if it holds all
    splits, if its images are elsewhere than it says, or if its categories
    differ in order from those of the training.

    Args:
        root: The folder that has the images.
        files: A file for each split, or one with the key ``''``.
        layout: The layout, for messages.
        names_from: Where the names come from. Default: the categories of the
            first file.
    """
    reader = _Reader(root, {*list_files(root, IMAGE_SUFFIXES)})
    splits: dict[str, Split] = {}
    sources = {**files}
    if '' in sources:
        path = sources.pop('')
        content = FILES.content(path)
        whole = _read(reader, '', path, content)
        parts = _divide(reader.changed.pop('', content), path)
        for split, part in zip(('train', 'val'), parts, strict=True):
            reader.changed[split] = part
            splits[split] = replace(whole, num_images=len(part['images']))
        given = path.is_relative_to(root)
        reader.notes.append(
            hold_out_note(
                f'{path.name} is the only annotation file'
                if given
                else 'no folders or lists for it'
            )
        )
    for split in SPLITS:
        if split in sources:
            content = FILES.content(sources[split])
            if split == 'test' and not content.get('annotations'):
                reader.notes.append(
                    f'{sources[split].name} has no annotations and is not used'
                )
                continue
            splits[split] = _read(reader, split, sources[split], content)
    if reader.changed:
        splits = _write(reader, splits)
    first = next(iter(files.values()))
    return OwnData(
        layout=layout,
        root=root,
        splits=splits,
        classes=reader.classes,
        names_from=names_from or f'the categories of {first.name}',
        palette=distinct_colours(len(reader.classes)),
        notes=reader.notes,
        has_masks=reader.has_masks,
    )


def _divide(
    content: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    images = sorted(content['images'], key=lambda x: str(x['file_name']))
    if len(images) < 2:
        raise DataError(
            f'{path} has {len(images)} images; training needs at least two, '
            'one of them for validation'
        )
    parts = []
    for part in hold_out(images):
        ids = {image['id'] for image in part}
        objects = content.get('annotations') or []
        objects = [x for x in objects if x.get('image_id') in ids]
        parts.append({**content, 'images': part, 'annotations': objects})
    return parts[0], parts[1]


def _read(
    reader: _Reader, split: str, path: Path, content: dict[str, Any]
) -> Split:
    try:
        return _read_split(reader, split, path, content)
    except (KeyError, TypeError):
        found = summarise(content, path).findings
        if not found.errors:
            raise
        raise DataError(found.message()) from None


def _read_split(
    reader: _Reader, split: str, path: Path, content: dict[str, Any]
) -> Split:
    names = tuple(str(c.get('name')) for c in content['categories'])
    if not reader.classes:
        reader.classes = _used(content, names)
        if len(reader.classes) < len(names):
            dropped = [n for n in names if n not in reader.classes]
            reader.notes.append(
                f'{list_some(dropped)} is only the group of the other '
                'categories, and no class'
            )
        objects = content.get('annotations') or []
        masks = sum(map(has_mask, objects))
        reader.has_masks = 2 * masks >= len(objects)
    elif [n for n in names if n in reader.classes] != [*reader.classes]:
        reader.changed[split] = content = _with_classes(
            content, reader.classes, path
        )
    folder, renamed = _find_images(reader, split, path, content['images'])
    if renamed:
        reader.changed[split] = content = {**content, 'images': renamed}
    return Split(
        num_images=len(content['images']),
        source=_source(reader, path, folder, content['images']),
        ann_file=str(path),
        folder=str(folder),
    )


def _used(content: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The names without that of a group that Roboflow puts first."""
    groups = {c.get('supercategory') for c in content['categories'][1:]}
    first = content['categories'][0] if names else {}
    objects = content.get('annotations') or []
    if (
        len(names) > 1
        and groups == {names[0]}
        and all(x['category_id'] != first['id'] for x in objects)
    ):
        return tuple(names[1:])
    return tuple(names)


def _with_classes(
    content: Mapping[str, Any], classes: Sequence[str], path: Path
) -> dict[str, Any]:
    """Content whose categories are those of the training, in their order."""
    ids = {c['id']: str(c['name']) for c in content['categories']}
    objects = content.get('annotations') or []
    unknown = {ids.get(x['category_id']) for x in objects} - {*classes}
    if unknown:
        raise DataError(
            f'{path} has objects of {list_some(sorted(map(str, unknown)))}, '
            f'and the training has the classes {list_some(classes, 8)}; give '
            'the files the same categories'
        )
    return {
        **content,
        'categories': [
            dict(id=i, name=name) for i, name in enumerate(classes, 1)
        ],
        'annotations': [
            {**x, 'category_id': classes.index(ids[x['category_id']]) + 1}
            for x in objects
        ],
    }


def _find_images(
    reader: _Reader, split: str, path: Path, images: Sequence[dict]
) -> tuple[Path, list[dict]]:
    """The folder of the images, and images with other paths if needed."""
    root = reader.root
    names = [_clean(image['file_name']) for image in images]
    folders = _candidates(reader, split, path)
    for folder in folders:
        if all(posixpath.normpath(f'{folder}/{n}') in reader.images
               for n in names):  # fmt: skip
            same = all(
                n == image['file_name']
                for n, image in zip(names, images, strict=True)
            )
            renamed = [] if same else _rename(images, names)
            return root / folder, renamed
    # Label Studio writes the path that the image had on its server.
    places: dict[str, list[str]] = {}
    for name in sorted(reader.images):
        places.setdefault(posixpath.basename(name), []).append(name)
    found = []
    for name in names:
        fitting = places.get(posixpath.basename(name), [])
        if len(fitting) > 1:
            fitting = [x for x in fitting if split_of_path(x) == split]
        if len(fitting) == 1:
            found.append(fitting[0])
    if len(found) < len(names):
        missing = [
            n for n in names if posixpath.basename(n) not in places
        ] or names
        raise DataError(
            f'{len(names) - len(found)} of the {len(names)} images that '
            f'{path} names are not below {root}, or several have the same '
            f'name (first: {missing[0]}); put the images there'
        )
    reader.notes.append(
        f'{path.name} says {images[0]["file_name"]}, and the images were '
        'found by their names'
    )
    return root, _rename(images, found)


def _rename(images: Sequence[dict], names: Sequence[str]) -> list[dict]:
    return [
        {**image, 'file_name': name}
        for image, name in zip(images, names, strict=True)
    ]


def _clean(name: str) -> str:
    """A path with the separators of this system."""
    return posixpath.normpath(str(name).replace('\\', '/'))


def _candidates(reader: _Reader, split: str, path: Path) -> list[str]:
    """Folders that the names of images may be relative to, likely ones first.

    Those with images are tried, and the folders around them.
    """
    folders = {'.'}
    for name in reader.images:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    own = path.parent
    return sorted(
        folders,
        key=lambda f: (
            split_of(*reversed(f.split('/'))) not in (split, None),
            split_of(*reversed(f.split('/'))) is None,
            (reader.root / f) != own,
            f.count('/'),
            f,
        ),
    )


def _write(reader: _Reader, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Write the changed contents, and name their files in the splits."""
    texts = {split: json.dumps(x) for split, x in reader.changed.items()}
    folder = prepared_folder(reader.root, *texts.values())

    def write(draft: Path) -> None:
        for split, text in texts.items():
            (draft / f'{split}.json').write_text(text)

    write_folder(folder, write)
    return {
        split: replace(found, ann_file=str(folder / f'{split}.json'))
        if split in texts
        else found
        for split, found in splits.items()
    }


def _source(
    reader: _Reader, path: Path, folder: Path, images: Sequence[Mapping]
) -> str:
    """Where a split was found, for a message."""
    inner = folder.relative_to(reader.root).as_posix()
    names = (f'{inner}/{_clean(image["file_name"])}' for image in images)
    found = f'images in {folder_names(names)}'
    if not path.is_relative_to(reader.root):  # a converted file
        return found
    return f'{path.relative_to(reader.root).as_posix()}, {found}'
