"""Files of masks: their pixels, and the labels in some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.masks import IGNORED


@dataclass(frozen=True)
class Mask:
    """What a mask of the sample is like.

    Attributes:
        labels: Its labels; empty for a mask in colour.
        coloured: Whether it has colours, in its pixels or in a palette.
        grey: Whether it has several equal channels.
    """

    labels: frozenset[int]
    coloured: bool = False
    grey: bool = False


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels of a mask.

    Args:
        path: The file.

    Returns:
        The pixels, ``(H, W)`` or ``(H, W, C)``, and the palette, ``(N, 3)``,
        if it has one.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            colours = image.getpalette() if image.mode == 'P' else None
            pixels = np.array(image)
    except (OSError, SyntaxError) as error:
        raise DataError(f'{path} cannot be read: {error}') from error
    return pixels, np.reshape(colours, (-1, 3)) if colours else None


def look(path: Path) -> Mask:
    """Look at one mask.

    Args:
        path: The file.
    """
    pixels, colours = read_mask(path)
    if pixels.ndim == 3:
        # The last of two or four channels is transparency.
        channels = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
        if (channels != channels[..., :1]).any():
            return Mask(frozenset(), coloured=True)
        values = np.unique(channels).tolist()
        return Mask(frozenset(values), grey=True)
    labels = frozenset(np.unique(pixels).astype(int).tolist())
    return Mask(labels, coloured=colours is not None)


def look_at_some(
    root: Path, masks: Sequence[str], number: int
) -> dict[str, Mask]:
    """Look at so many masks spread over all, the same ones each time.

    Args:
        root: The folder of the data.
        masks: All masks, relative to it.
        number: How many to look at.
    """
    step = max(1, len(masks) // number)
    chosen = masks[::step]
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda name: look(root / name), chosen)
        return dict(zip(chosen, looks, strict=True))


def labels_of(sample: Mapping[str, Mask]) -> list[int]:
    """Labels that occur, but for the ignored one, in rising order.

    Args:
        sample: Masks by their names.
    """
    labels = {x for mask in sample.values() for x in mask.labels}
    return sorted(labels - {IGNORED})


def is_sparse(labels: Sequence[int]) -> bool:
    """Whether most numbers up to the largest label are no labels.

    Args:
        labels: The labels in rising order.
    """
    return bool(labels) and 2 * len(labels) <= labels[-1]


def first_channel(path: Path) -> np.ndarray:
    """The first channel of a mask, ``(H, W)``.

    Args:
        path: The file.
    """
    pixels, _ = read_mask(path)
    return pixels if pixels.ndim == 2 else pixels[..., 0]
