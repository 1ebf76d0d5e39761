"""What a folder of own data holds, and the words that name its parts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mmefficientmod.messages import list_some

SPLITS = ('train', 'val', 'test')
# Words in the names of files and folders, and the split that they stand for.
SPLIT_WORDS = dict(
    train='train', training='train',
    val='val', valid='val', validation='val',
    test='test', testing='test',
)  # fmt: skip
# Words in the names of folders of masks, of images, and of annotations.
MASK_WORDS = {
    'ann', 'annot', 'annotation', 'annotations', 'gt', 'gtfine', 'label',
    'labels', 'labelmaps', 'mask', 'masks', 'seg', 'segmentation',
    'segmentationclass', 'segmentationclasspng', 'segmentationclassraw',
    'segmentations',
}  # fmt: skip
IMAGE_WORDS = {
    'image', 'images', 'img', 'imgs', 'jpegimages', 'leftimg', 'photos',
}  # fmt: skip
# One image of so many is for validation where the data has no such split.
VAL_EVERY = 5
MOST_LEVELS = 6  # of folders that are searched
# Files that are made of the data: lists, label maps, annotation files.
PREPARED = Path('data', 'own')
T = TypeVar('T')


@dataclass(frozen=True)
class Split:
    """Training, validation or test images.

    Attributes:
        num_images: Their number.
        source: Where they are, for a message.
        ann_file: Absolute path of the annotations, or of a list of files.
            Empty for a folder that has a folder for each class.
        folder: Folder that the names of the images are relative to.
    """

    num_images: int
    source: str
    ann_file: str = ''
    folder: str = ''


@dataclass(frozen=True)
class OwnData:
    """What was found in a folder.

    Attributes:
        layout: The layout, for a message.
        root: The folder.
        splits: The splits that it has, by their names in :data:`SPLITS`.
        classes: Names of the classes.
        names_from: Where the names come from, for a message.
        palette: A colour (R, G, B) for each class.
        notes: Sentences on what the user may not expect.
        has_masks: Whether objects have masks.
        ignores_zero: Whether label 0 of the masks is ignored and the classes
            count from label 1.
    """

    layout: str
    root: Path
    splits: dict[str, Split]
    classes: tuple[str, ...]
    names_from: str
    palette: list[tuple[int, int, int]]
    notes: list[str] = field(default_factory=list)
    has_masks: bool = True
    ignores_zero: bool = False


def words(text: str) -> list[str]:
    """The words in a name, in lower case, without digits and other signs."""
    return re.findall('[a-z]+', text.lower())


def split_of(*names: str) -> str | None:
    """The split that the first name with such a word stands for.

    Args:
        *names: Names of a file and of the folders that it is in.

    Returns:
        One of :data:`SPLITS`; None if no name has such a word, or if one has
        words for several, as ``train_val``.
    """
    for name in names:
        text = re.sub(r'^(train|val|test)annot$', r'\1', name.lower())
        found = {SPLIT_WORDS[w] for w in words(text) if w in SPLIT_WORDS}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def role_of(name: str) -> str:
    """What the name of a folder says about its content.

    Args:
        name: The name.

    Returns:
        ``'mask'``, ``'image'``, ``'split'``; empty for any other name.
    """
    # SegNet's CamVid has `trainannot` beside `train`.
    found = words(re.sub(r'^(train|val|test)annot$', 'annot', name.lower()))
    if any(word in MASK_WORDS for word in found):
        return 'mask'
    if any(word in IMAGE_WORDS for word in found):
        return 'image'
    return 'split' if split_of(name) else ''


def split_of_path(path: str | Path) -> str | None:
    """As :func:`split_of`, for a path: the file, then the nearest folder."""
    path = Path(path)
    return split_of(path.stem, *reversed(path.parts[:-1]))


def list_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Files below a folder, as sorted paths relative to it with ``/``.

    Hidden folders, those that macOS adds to archives, and files that were
    made of others, are passed over.

    Args:
        root: The folder.
        suffixes: Endings of the files, in lower case.
    """
    found = []
    prepared = Path.cwd() / PREPARED
    for folder, subfolders, files in os.walk(root, followlinks=True):
        inner = Path(folder).relative_to(root)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(('.', '__'))
            and len(inner.parts) < MOST_LEVELS
            and not (
                name == prepared.name
                and Path(folder, name).resolve() == prepared.resolve()
            )
        ]
        found += [
            (inner / name).as_posix()
            for name in files
            if name.lower().endswith(tuple(suffixes))
            and not name.startswith('.')
        ]
    return sorted(found)


def folder_names(files: Iterable[str]) -> str:
    """The folders of files, for a message."""
    return list_some(sorted({str(PurePosixPath(x).parent) for x in files}), 2)


def hold_out(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Divide items into training and validation, always in the same way.

    Args:
        items: At least two. One of :data:`VAL_EVERY`, and at least one, is
            for validation.
    """
    every = min(VAL_EVERY, len(items))
    val = list(items[every - 1 :: every])
    train = [x for i, x in enumerate(items) if i % every != every - 1]
    return train, val


def hold_out_note(found: str) -> str:
    """The sentence that says that validation images were taken from others.

    Args:
        found: What the data has instead of a split for validation.
    """
    return (
        f'no validation data ({found}): one image of {VAL_EVERY} is for '
        'validation and not trained on, always the same ones'
    )


def prepared_folder(root: Path, *content: str) -> Path:
    """Where files that are made of others belong, a name for each content.

    Args:
        root: The folder of the data.
        *content: What the files are made of.
    """
    digest = hashlib.sha256(str(root.resolve()).encode())
    for text in content:
        digest.update(text.encode())
    name = root.resolve().name or 'data'
    return Path.cwd() / PREPARED / f'{name}-{digest.hexdigest()[:10]}'


def stamp(root: Path, files: Iterable[str]) -> str:
    """Names, sizes and times of files, which change with their content.

    Args:
        root: The folder that the names are relative to.
        files: The files.
    """
    stats = [(name, (root / name).stat()) for name in files]
    return '\n'.join(
        f'{name}:{stat.st_size}:{stat.st_mtime_ns}' for name, stat in stats
    )
