"""Which data a folder holds, for a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import IMAGE_SUFFIXES
from mmefficientmod.messages import list_some

from .coco import find_coco, read_files
from .convert import convert, find_source
from .folders import find_class_folders
from .layout import OwnData, list_files
from .masks import find_masks


def find_boxes(root: Path) -> OwnData | None:
    """Data for detection; other formats than COCO's are converted.

    Args:
        root: The folder.
    """
    data = find_coco(root)
    source = None if data else find_source(root)
    if source is None:
        return data
    files = convert(root, source)
    data = read_files(root, files, source.layout, source.names_from)
    data.notes.append(
        f'converted by supervision, to {next(iter(files.values())).parent}'
    )
    return data


# For the toolbox of a config: what finds its data, and what that may be.
FINDERS: dict[str, tuple[Callable[[Path], OwnData | None], str]] = dict(
    mmdet=(
        find_boxes,
        'a COCO file (.json) beside the images, YOLO labels with data.yaml, '
        'Pascal VOC annotations (.xml) or labelme files',
    ),
    mmseg=(
        find_masks,
        'images and masks in folders such as images/train and masks/train, '
        'with the same names',
    ),
    mmpretrain=(
        find_class_folders,
        'a folder of images for each class, such as train/cat and val/cat',
    ),
)


def find_data(folder: str, scope: str) -> OwnData:
    """Find the data of a task in a folder.

    Args:
        folder: The folder.
        scope: The toolbox of the config, a key of :data:`FINDERS`.

    Raises:
        DataError: If the folder does not exist or holds no such data, or the
            data is not clear.
    """
    root = Path(folder)
    if root.is_file():
        raise DataError(
            f'--data {folder} is a file; unpack it if it is an archive, and '
            'name the folder of the data'
        )
    if not root.is_dir():
        raise DataError(f'--data {folder}: there is no such folder')
    find, expected = FINDERS[scope]
    data = find(root)
    if data is None:
        raise DataError(
            f'--data {folder}: the config needs {expected}; the folder has '
            f'{_describe(root)}'
        )
    return data


def _describe(root: Path) -> str:
    """What is in a folder, in a few words."""
    top = sorted(
        f'{path.name}/' if path.is_dir() else path.name
        for path in root.iterdir()
        if not path.name.startswith('.')
    )
    images = list_files(root, IMAGE_SUFFIXES)
    return f'{len(images)} images; at its top: {list_some(top, 6)}'
