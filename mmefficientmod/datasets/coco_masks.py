"""Masks of objects in annotation files: polygons and run lengths (RLE).

The rules by which a mask is drawn are those of MMDetection and pycocotools,
which decodes run lengths without a check of their sum: damaged ones overwrite
memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Bits of a character in compressed run lengths; its code is 48 and more.
FIRST_CODE, MORE, SIGN, BITS = 48, 32, 16, 5
LONGEST = 6  # characters of a number


def has_mask(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation has a mask that MMDetection draws.

    Args:
        annotation: An annotation, whose ``segmentation`` is a list of
            polygons ``[x, y, x, y, ...]`` or an RLE.
    """
    mask = annotation.get('segmentation')
    if isinstance(mask, dict):
        return isinstance(mask.get('counts'), (list, str)) and 'size' in mask
    return isinstance(mask, list) and any(map(is_polygon, mask))


def is_polygon(polygon: Sequence[float]) -> bool:
    """Whether a list of coordinates has three points or more."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def is_well_formed(annotation: Mapping[str, Any]) -> bool:
    """Whether the mask has the right types and only finite numbers.

    Args:
        annotation: An annotation; it may have no mask.
    """
    mask = annotation.get('segmentation')
    if not isinstance(mask, list):
        return mask is None or isinstance(mask, dict)
    try:
        # The sum is finite only if all terms are.
        return all(math.isfinite(sum(polygon)) for polygon in mask)
    except TypeError:
        return False


def is_drawn(annotation: Mapping[str, Any], image: Mapping) -> bool:
    """Whether the mask covers a part of its image.

    Args:
        annotation: An annotation with :func:`has_mask`, whose run lengths are
            no :func:`is_bad_rle`.
        image: The entry of its image.
    """
    mask = annotation['segmentation']
    if isinstance(mask, dict):
        runs = _run_lengths(mask['counts'])
        return runs is not None and bool(runs[1::2].sum() > 0)
    return any(
        is_polygon(polygon)
        and _meets(polygon, image['width'], image['height'])
        for polygon in mask
    )


def _meets(polygon: Sequence[float], width: float, height: float) -> bool:
    x, y = polygon[:2]
    if 0 <= x < width and 0 <= y < height and abs(polygon[2] - x) > 1:
        return True  # most polygons: the rest takes five times as long
    left, right = min(polygon[::2]), max(polygon[::2])
    top, bottom = min(polygon[1::2]), max(polygon[1::2])
    return (
        right > 0
        and bottom > 0
        and left < width
        and top < height
        and max(right - left, bottom - top) >= 1
    )


def is_bad_rle(annotation: Mapping[str, Any], image: Mapping | None) -> bool:
    """Whether run lengths are damaged or those of another size.

    Args:
        annotation: An annotation; it may have polygons or no mask.
        image: The entry of its image; None if there is none.
    """
    mask = annotation.get('segmentation')
    if not isinstance(mask, dict) or image is None:
        return False
    if mask.get('size') != [image['height'], image['width']]:
        return True
    counts = mask.get('counts')
    if counts is None:
        return False  # no mask, see `has_mask`
    runs = _run_lengths(counts)
    return (
        runs is None
        or runs.min(initial=0) < 0
        or runs.sum() != image['height'] * image['width']
    )


def _run_lengths(counts: Any) -> np.ndarray | None:
    """Lengths of the runs outside and inside in turns; None if damaged."""
    if isinstance(counts, str):
        return _decompress(counts)
    try:
        runs = np.array(counts)
    except ValueError:
        return None
    return runs if runs.ndim == 1 and runs.dtype.kind in 'iuf' else None


def _decompress(text: str) -> np.ndarray | None:
    """Run lengths in COCO's compressed text.

    Each number is written in groups of five bits, the lowest first, one
    character a group. From the fourth on it is the difference to the number
    before the last.
    """
    content = text.encode('latin1', 'replace')
    codes = np.frombuffer(content, np.uint8).astype(np.int64) - FIRST_CODE
    if not codes.size or codes.min() < 0 or codes.max() >= 2 * MORE:
        return None
    ends = np.flatnonzero(codes & MORE == 0)
    if not ends.size or ends[-1] != codes.size - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        return None
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & (MORE - 1)) << (BITS * place), starts)
    runs -= np.where(codes[ends] & SIGN, 1 << (BITS * lengths), 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
