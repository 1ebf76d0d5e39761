"""Image files of a data set: whether they exist, and what their headers say.

The header of a file is read, not its pixels, which takes some 0.1 ms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmefficientmod.config.nodes import type_name
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.messages import list_some

IMAGE_SUFFIXES = (
    '.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip
ORIENTATION = 0x0112  # EXIF's tag
NOT_TURNED = 1  # its value of an image that is stored upright
SWAP_SIDES = (5, 6, 7, 8)  # its values for a turn by 90 degrees
MIRRORED = (2, 3, 4)  # its values that keep the sides
# Backends and flags with which mmcv turns an image as EXIF says.
TURNING_BACKENDS = (None, 'cv2', 'pillow')
TURNING_FLAGS = ('color', 'grayscale')

T = TypeVar('T')


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        width: Width as stored, in pixels.
        height: Height as stored, in pixels.
        mode: Pillow's mode, such as ``'RGB'``, ``'L'`` or ``'I;16'``.
        format: Pillow's format, such as ``'JPEG'``.
        orientation: EXIF's orientation, 1 to 8; 1 is upright.
    """

    width: int
    height: int
    mode: str
    format: str
    orientation: int

    def size(self, turned: bool) -> tuple[int, int]:
        """Width and height in pixels.

        Args:
            turned: Whether the image is turned as EXIF says.
        """
        if turned and self.orientation in SWAP_SIDES:
            return self.height, self.width
        return self.width, self.height


def read_header(path: str | Path) -> Header:
    """Read the header of an image file.

    Args:
        path: The file.

    Raises:
        DataError: If it does not exist or is no image.
    """
    try:
        with open(path, 'rb') as file:
            return parse_header(file, path)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


def parse_header(file: BinaryIO, path: str | Path) -> Header:
    """Read the header of an open image file.

    Args:
        file: The file.
        path: Its name, for messages.

    Raises:
        DataError: If it is no image.
    """
    try:
        with Image.open(file) as image:
            return Header(
                *image.size,
                image.mode,
                image.format or '',
                # Only these formats have EXIF data in use.
                image.getexif().get(ORIENTATION, NOT_TURNED)
                if image.format in ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF')
                else NOT_TURNED,
            )
    except UnidentifiedImageError as error:
        raise DataError(f'{path} is no image that can be read') from error
    # Pillow raises many types for damaged headers and very large images.
    except Exception as error:
        raise DataError(
            f'{path} cannot be read: {type(error).__name__}: {error}'
        ) from error


def turns_images(pipeline: Iterable[Mapping[str, Any]]) -> bool | None:
    """Whether a pipeline turns images as EXIF says.

    Args:
        pipeline: Dicts of the transforms.

    Returns:
        None if it does not load images from files.
    """
    for step in pipeline:
        if type_name(step) == 'LoadImageFromFile':
            return (
                step.get('imdecode_backend') in TURNING_BACKENDS
                and step.get('color_type', 'color') in TURNING_FLAGS
            )
    return None


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of some files that do not exist.

    Each folder is listed once, which is faster than asking for each file.

    Args:
        paths: The files.
    """
    listing = lru_cache(maxsize=None)(_list_folder)
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if name not in listing(folder) and not os.path.exists(path):
            missing.append(path)
    return missing


def _list_folder(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or '.'))
    except OSError:
        return frozenset()


def describe_missing(
    missing: Sequence[str], number: int, owner: str, kind: str = 'images'
) -> str:
    """A sentence about files that do not exist.

    Args:
        missing: The files, at least one.
        number: How many files were looked for.
        owner: Who names them, such as ``data/train.json``.
        kind: What the files are. Default: images.
    """
    hint = ''
    folder, name = os.path.split(missing[0])
    with_slash = missing[0].replace('\\', '/')
    without = missing[0].removesuffix(Path(name).suffix)
    if with_slash != missing[0]:
        hint = f'; write / in place of \\, as in {with_slash}'
    elif os.path.isfile(without):
        hint = (
            f'; {without} exists: write names without {Path(name).suffix} '
            'in the list, since the data set adds it'
        )
    elif not os.path.isdir(folder or '.'):
        hint = f'; the folder {folder} does not exist'
    else:
        stem = Path(name).stem.lower()
        known = _list_folder(folder)
        alike = [x for x in sorted(known) if Path(x).stem.lower() == stem]
        if alike:
            hint = f'; {folder} has {list_some(alike)}'
    return (
        f'{owner}: {len(missing)} of {number} {kind} do not exist '
        f'({list_some(missing, 2)}){hint}'
    )


def in_random_order(items: Sequence[T], seconds: float) -> Iterator[T]:
    """Items in a fixed random order, until the time is over.

    So a part of them is a fair sample. At least one item is given, unless
    the time is 0.

    Args:
        items: The items.
        seconds: The time.
    """
    if not seconds:
        return
    end = time.monotonic() + seconds
    for index in np.random.default_rng(0).permutation(len(items)):
        yield items[index]
        if time.monotonic() > end:
            return
