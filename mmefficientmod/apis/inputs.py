"""Images, videos and cameras to predict on: finding and opening them."""

from __future__ import annotations

import glob
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmefficientmod.datasets import DataError
from mmefficientmod.messages import list_some, shorten

# Suffixes of the files that a folder or a pattern is searched for. OpenCV
# reads the last two from version 5 on.
IMAGES = (
    '.bmp', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png',
    '.pnm', '.ppm', '.tif', '.tiff', '.webp',
    *(suffix for suffix in ('.avif', '.gif') if cv2.haveImageWriter(suffix)),
)  # fmt: skip
VIDEOS = (
    '.3gp', '.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg',
    '.webm', '.wmv',
)  # fmt: skip
SUFFIXES = f'{", ".join(IMAGES)} (images), {", ".join(VIDEOS)} (videos)'
# Frames per second of a video or camera that does not say how many it has.
USUAL_RATE = 25.0


@dataclass(frozen=True)
class Source:
    """An image file, a video file or a camera.

    Attributes:
        path: The file, or the number of a camera.
        name: Name of its outputs: the path below the folder that has all
            inputs, with ``/`` between its parts.
        kind: ``'image'``, ``'video'`` or ``'camera'``.
    """

    path: str
    name: str
    kind: str = 'image'


def find_sources(
    inputs: Sequence[str], skip: Iterable[str | os.PathLike] = ()
) -> list[Source]:
    """The images, videos and cameras that arguments stand for.

    An argument is a file; a folder, which is searched with all folders below
    it; a pattern with ``*``, ``?``, ``[...]`` or ``**``; the number of a
    camera; or the device file of a camera. A file or folder of the name comes
    first. Hidden files and folders are found only if they are named.

    Args:
        inputs: The arguments.
        skip: Folders in which nothing is searched for. Default: none.

    Returns:
        The sources in the order of the arguments, those of a folder or a
        pattern by name, each file once.

    Raises:
        DataError: If an argument stands for nothing that can be read. A named
            file or camera is looked at, those of a folder or pattern are not.
    """
    skipped = {os.path.realpath(folder) for folder in skip}
    found: dict[str, str] = {}  # absolute paths, and the paths to open
    roots = []
    for given in inputs:
        if _is_camera(given):
            with closing(Video(_source(given, given, None))):
                found.setdefault(given, given)
            continue
        paths, root = _expand(given, skipped)
        roots.append(os.path.abspath(root))
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    # Paths of several drives of Windows have no folder in common.
    drives = {os.path.splitdrive(root)[0] for root in roots}
    base = os.path.commonpath(roots) if len(drives) == 1 else None
    return [_source(path, key, base) for key, path in found.items()]


def _source(path: str, key: str, base: str | None) -> Source:
    if _is_camera(path):
        number = ''.join(c for c in Path(path).name if c.isalnum())
        return Source(path, f'camera_{number}', 'camera')
    name = os.path.relpath(key, base) if base else key.replace(':', '')
    kind = 'video' if path.lower().endswith(VIDEOS) else 'image'
    return Source(path, Path(name.lstrip('/\\')).as_posix(), kind)


def _is_camera(given: str) -> bool:
    if os.path.exists(given):
        return stat.S_ISCHR(os.stat(given).st_mode)
    return given.isascii() and given.isdigit()


def _expand(given: str, skipped: set[str]) -> tuple[list[str], str]:
    """The files that an argument stands for, and the folder they are in."""
    if os.path.isdir(given):
        files = sorted(_search(given, skipped))
        if not files:
            raise DataError(
                f'{given} has no images or videos: no file in it or in its '
                f'folders ends in {SUFFIXES}'
            )
        return files, given
    if os.path.exists(given):
        _check_kind(given)
        return [given], os.path.dirname(given)
    if '://' in given:
        raise DataError(f'{given} is a URL; download the file first')
    if not glob.has_magic(given):
        raise DataError(f'{given} does not exist')
    matches = sorted(glob.glob(given, recursive=True))
    files = []
    for match in matches:
        if os.path.isdir(match):
            files += sorted(_search(match, skipped))
        elif match.lower().endswith(IMAGES + VIDEOS):
            files.append(match)
    if not files:
        raise DataError(
            f'{given} matches '
            + (f'{list_some(matches)}, but ' if matches else '')
            + f'no file that ends in {SUFFIXES}'
        )
    fixed = given[: min(given.find(c) for c in '*?[' if c in given)]
    return files, os.path.dirname(fixed)


def _search(folder: str, skipped: set[str]) -> Iterator[str]:
    seen = set()  # a link may lead to a folder above it
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        kept = []
        for name in folders:
            path = os.path.realpath(os.path.join(parent, name))
            if not name.startswith('.') and path not in seen | skipped:
                seen.add(path)
                kept.append(name)
        folders[:] = kept
        for name in files:
            if name.lower().endswith(IMAGES + VIDEOS) and name[0] != '.':
                yield os.path.join(parent, name)


def _check_kind(path: str) -> None:
    """Raise if the beginning of a file is that of no image or video."""
    if path.lower().endswith(VIDEOS):
        with closing(Video(Source(path, path, 'video'))):
            return
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
        known = start and cv2.haveImageReader(path)
    except UnicodeError:  # OpenCV takes no such name; the loader does
        return
    except OSError as error:
        raise DataError(
            f'{path} cannot be read: {error.strerror or error}'
        ) from error
    if not known:
        raise DataError(
            f'{path} is no image that can be read'
            + ('' if start else ', it is empty')
            + f'; the suffixes of what can be read are {SUFFIXES}'
        )


class Video:
    """The frames of a video or a camera, in their order.

    Args:
        source: The video or camera.

    Attributes:
        rate: Frames per second; 25 if the file does not say it.
        length: Number of frames that the file promises; 0 if unknown.

    Raises:
        DataError: If it cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        path = source.path
        with _without_warnings():
            self._capture = cv2.VideoCapture(
                int(path) if path.isdigit() and source.kind == 'camera'
                else path
            )  # fmt: skip
        if not self._capture.isOpened():
            raise DataError(
                f'{path} is no camera that can be opened'
                if source.kind == 'camera'
                else f'{path} is no video that can be read'
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else USUAL_RATE
        length = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        known = source.kind == 'video' and math.isfinite(length)
        self.length = max(0, int(length)) if known else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 arrays ``(H, W, 3)`` in BGR.

        Raises:
            DataError: At the end, if the file has no frame, or less than nine
                tenths of those that it promises, since it is cut off.
        """
        count = 0
        while True:
            whole, frame = self._capture.read()
            if not whole:
                break
            count += 1
            yield frame
        # For some formats, the length is an estimate.
        if count == 0 or count < 0.9 * self.length:
            raise DataError(
                f'{self.source.path} ended after {count} of '
                f'{self.length or "its"} frames'
            )

    def close(self) -> None:
        """Close the file or the camera."""
        self._capture.release()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep OpenCV from writing to stderr why it cannot open a file."""
    log: Any = getattr(cv2.utils, 'logging', cv2)  # a module in OpenCV 5
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    finally:
        log.setLogLevel(level)


def load_image(source: Source, loader: Callable[[dict], dict | None]) -> dict:
    """Load an image as the test pipeline of a config loads it.

    Args:
        source: The image.
        loader: The first step of the pipeline, ``LoadImageFromFile``.

    Returns:
        What the next step takes, with the image under ``img``. An image that
        its EXIF data turns is turned.

    Raises:
        DataError: If it cannot be loaded.
    """
    try:
        results = loader(dict(img_path=source.path))
    except Exception as error:
        reason = 'it cannot be decoded'
        if isinstance(error, OSError):
            reason = error.strerror or shorten(str(error))
        raise DataError(
            f'{source.path} is no image that can be read: {reason}'
        ) from error
    if results is None:
        raise DataError(f'{source.path} is no image that can be read')
    return results


def frame_as_loaded(
    source: Source, frame: np.ndarray, loader: Callable[[dict], dict | None]
) -> dict:
    """Give a frame the form in which ``loader`` loads images.

    Args:
        source: The video or camera.
        frame: From :class:`Video`.
        loader: As in :func:`load_image`.
    """
    if getattr(loader, 'color_type', 'color') == 'grayscale':
        frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    if getattr(loader, 'to_float32', False):
        frame = frame.astype(np.float32)
    shape = frame.shape[:2]
    return dict(
        img=frame, img_path=source.path, img_shape=shape, ori_shape=shape
    )


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A loaded image as one that can be drawn on.

    Args:
        image: Array ``(H, W)`` or ``(H, W, C)`` of any type, BGR if it has
            three channels, BGRA if it has four; of more or two, the first is
            taken.

    Returns:
        A uint8 array ``(H, W, 3)`` in RGB, a copy.
    """
    if image.dtype == np.uint16:
        image = image // 257
    if image.dtype != np.uint8:
        image = np.nan_to_num(image).clip(0, 255).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] not in (3, 4):
        image = np.dstack([image.reshape(*image.shape[:2], -1)[..., 0]] * 3)
    return np.ascontiguousarray(image[..., 2::-1])
