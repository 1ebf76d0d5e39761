"""Own data for classification: a folder for each class."""

from __future__ import annotations

from pathlib import Path

from mmefficientmod.atomic import write_folder
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import IMAGE_SUFFIXES

from .layout import (
    OwnData,
    Split,
    hold_out,
    hold_out_note,
    list_files,
    prepared_folder,
    role_of,
    split_of,
)
from .names import distinct_colours


def find_class_folders(root: Path) -> OwnData | None:
    """Find a folder for each class, in a folder for each split or in none.

    Args:
        root: The folder.

    Returns:
        What was found, None if it has no such folders.

    Raises:
        DataError: If a class has too few images for a part of them to be for
            validation.
    """
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        split = split_of(folder.name)
        if split and split not in found and _classes(folder):
            found[split] = folder
    if {*found} == {'train'}:
        return _divide(found['train'], _classes(found['train']))
    if found:
        first = found.get('train') or next(iter(found.values()))
        classes = _classes(first)
        return OwnData(
            layout='class folders',
            root=root,
            splits={
                split: Split(
                    num_images=len(list_files(folder, IMAGE_SUFFIXES)),
                    source=folder.name,
                    folder=str(folder),
                )
                for split, folder in found.items()
            },
            classes=classes,
            names_from=f'the folders in {first.name}',
            palette=distinct_colours(len(classes)),
        )
    classes = _classes(root)
    if len(classes) < 2 or {'image', 'mask'} & {
        role_of(name) for name in classes
    }:
        return None
    return _divide(root, classes)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(('.', '__'))
    )


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder; none if no folder has images."""
    folders = _subfolders(folder)
    if any(list_files(path, IMAGE_SUFFIXES) for path in folders):
        return tuple(path.name for path in folders)
    return ()


def _divide(root: Path, classes: tuple[str, ...]) -> OwnData:
    """Take images of each class for validation."""
    lines: dict[str, list[str]] = dict(train=[], val=[])
    for label, name in enumerate(classes):
        images = list_files(root / name, IMAGE_SUFFIXES)
        if len(images) < 2:
            raise DataError(
                f'{root / name} has {len(images)} images; a class needs at '
                'least two, one of them for validation'
            )
        for split, part in zip(lines, hold_out(images), strict=True):
            lines[split] += [f'{name}/{image} {label}' for image in part]
    texts = {split: '\n'.join(part) for split, part in lines.items()}

    def write(draft: Path) -> None:
        for split, text in texts.items():
            (draft / f'{split}.txt').write_text(text, encoding='utf-8')

    folder = write_folder(prepared_folder(root, *texts.values()), write)
    return OwnData(
        layout='class folders',
        root=root,
        splits={
            split: Split(
                num_images=len(part),
                source='the class folders',
                ann_file=str(folder / f'{split}.txt'),
                folder=str(root),
            )
            for split, part in lines.items()
        },
        classes=classes,
        names_from='the folders',
        palette=distinct_colours(len(classes)),
        notes=[hold_out_note('no folders for it')],
    )
