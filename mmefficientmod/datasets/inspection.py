"""Every image and mask of a data set, decoded once, in parallel."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import Header, parse_header
from mmefficientmod.datasets.masks import LABELS, kinds_of_mask, kinds_of_pair

CHUNK = 32  # entries that a worker takes at once
# How files of JPEG and PNG begin, and how whole ones end.
ENDINGS = {
    b'\xff\xd8': b'\xff\xd9',
    b'\x89PNG\r\n\x1a\n': b'IEND\xaeB`\x82',
}
TAIL = 64  # bytes at the end of a file in which the ending is looked for
# What is wrong with an image file, and what to do.
IMAGE_KINDS = dict(
    missing='does not exist',
    unreadable='cannot be decoded; export it again or remove it',
    cut='is cut off, the end of the file is missing; copy it again',
    said='has another size than its annotation file says',
)


@dataclass(frozen=True)
class Entry:
    """What is to be looked at.

    Attributes:
        image: The image file.
        mask: The mask file of semantic segmentation. Default: none.
        said: Width and height by the annotation file, in pixels. Default:
            not known.
        turns: Whether the image is loaded as EXIF says. Default: yes.
    """

    image: str
    mask: str | None = None
    said: tuple[int, int] | None = None
    turns: bool = True


@dataclass
class Inspected:
    """What was found.

    Attributes:
        entry: What was looked at.
        size: Width and height as loaded, in pixels; ``(0, 0)`` if the image
            cannot be read.
        digest: Checksum and number of bytes of the image file.
        image_kinds: Keys of ``IMAGE_KINDS``.
        mask_kinds: What is wrong with the mask, keys of ``KINDS`` and
            ``DOUBTS`` in ``masks.py``.
        labels: Labels in the mask, as stored, and the number of their pixels.
    """

    entry: Entry
    size: tuple[int, int] = (0, 0)
    digest: tuple[int, int] = (0, 0)
    image_kinds: list[str] = field(default_factory=list)
    mask_kinds: list[str] = field(default_factory=list)
    labels: dict[int, int] = field(default_factory=dict)


def inspect(entry: Entry) -> Inspected:
    """Decode an image and its mask.

    Args:
        entry: What to look at.
    """
    found = Inspected(entry)
    data = b''
    try:
        data = Path(entry.image).read_bytes()
    except OSError:
        found.image_kinds.append('missing')
    else:
        found.digest = zlib.crc32(data), len(data)
        _decode(found, data)
    if entry.said and found.size not in ((0, 0), entry.said):
        found.image_kinds.append('said')
    if entry.mask:
        # Pillow's header says how EXIF turns the image.
        header = None
        if not found.image_kinds:
            with contextlib.suppress(DataError):
                header = parse_header(io.BytesIO(data), entry.image)
        _inspect_mask(found, header)
    return found


def _decode(found: Inspected, data: bytes) -> None:
    flag = cv2.IMREAD_COLOR
    if not found.entry.turns:
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
    ending = next((e for b, e in ENDINGS.items() if data.startswith(b)), b'')
    if ending not in data[-TAIL:] and _is_cut(data):
        # OpenCV 4 fills the rest with grey; OpenCV 5 refuses the file.
        found.image_kinds.append('cut')
        return
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        found.image_kinds.append('unreadable')
        return
    found.size = image.shape[1], image.shape[0]


def _is_cut(data: bytes) -> bool:
    """Whether Pillow misses the end; other bytes may follow the image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError:
        return False  # no image at all
    except Exception:
        return True
    return False


def _inspect_mask(found: Inspected, header: Header | None) -> None:
    mask = found.entry.mask
    assert mask is not None
    try:
        data = Path(mask).read_bytes()
    except OSError:
        found.mask_kinds.append('missing')
        return
    try:
        shown = parse_header(io.BytesIO(data), mask)
        with Image.open(io.BytesIO(data)) as image:
            labels = np.array(image)
    except Exception:
        found.mask_kinds.append('unreadable')
        return
    found.mask_kinds += kinds_of_mask(shown)
    if header is not None:
        found.mask_kinds += kinds_of_pair(header, shown, found.entry.turns)
    if labels.ndim == 2:
        labels = labels.astype(np.int64, copy=False)
        if labels.min() < 0 or labels.max() >= LABELS:
            found.mask_kinds.append('wide')
            labels = labels[(labels >= 0) & (labels < LABELS)]
        counts = np.bincount(labels.ravel())
        found.labels = {int(i): int(counts[i]) for i in counts.nonzero()[0]}


def inspect_all(
    entries: Sequence[Entry],
    workers: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Inspected]:
    """Look at many entries, in parallel and in their order.

    Args:
        entries: What to look at.
        workers: Number of processes.
        progress: Called with the number of entries that were done. Default:
            nothing.
    """
    if workers <= 1 or len(entries) <= CHUNK:
        for entry in entries:
            yield inspect(entry)
            progress(1)
        return
    # A forked worker has all modules imported.
    context = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads,
        initargs=(0,),
    ) as pool:  # fmt: skip
        for found in pool.map(inspect, entries, chunksize=CHUNK):
            yield found
            progress(1)


def duplicates(found: Sequence[Inspected]) -> list[list[str]]:
    """Groups of image files with the same bytes.

    Args:
        found: What was found; the same file may be in it several times.
    """
    alike: dict[tuple[int, int], dict[str, None]] = {}
    for one in found:
        if one.digest[1]:
            alike.setdefault(one.digest, {})[one.entry.image] = None
    groups = []
    for paths in alike.values():
        same: dict[bytes, list[str]] = {}
        if len(paths) > 1:  # a checksum may collide
            for path in paths:
                same.setdefault(Path(path).read_bytes(), []).append(path)
        groups += [group for group in same.values() if len(group) > 1]
    return groups
