"""Masks of semantic segmentation: files whose pixels are labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.datasets.images import NOT_TURNED, Header, read_header
from mmefficientmod.findings import Findings
from mmefficientmod.messages import list_some

IGNORED = 255  # the label of pixels without a class
LABELS = 256  # labels that MMSegmentation tells apart
# Pillow's modes of files with several channels.
COLOUR_MODES = ('RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')
ALPHA_MODES = ('LA', 'PA', 'La')
# What is wrong with a mask, and what to do.
KINDS = dict(
    jpeg='{} are JPEG files, whose compression invents labels; export them '
    'again as PNG',
    colour='{} are colour images; a mask has one channel, whose values are '
    'the labels, so convert the colours to labels',
    alpha='{} have a second channel (alpha); a mask has one channel, whose '
    'values are the labels',
    size='{} have another size than their image as it is loaded; export '
    'them again in the size of the image',
    turned='{} belong to images that EXIF turns by 90 degrees when they are '
    'loaded, and are not turned; save these images upright, or read them by '
    "LoadImageFromFile(color_type='color_ignore_orientation')",
    exif='{} have an EXIF orientation, which is not followed for masks; save '
    'them upright',
    missing='{} do not exist',
    wide='{} have labels below 0 or above 255, which MMSegmentation reads '
    'modulo 256; renumber them',
    image='{} cannot be read',
    unreadable='{} cannot be read as images',
)
# What may be right, and a user should look at.
DOUBTS = dict(
    mirrored='{} belong to images that EXIF mirrors or turns upside down '
    'when they are loaded; look whether the masks are of the images as shown',
)


@dataclass
class PairSummary:
    """What the headers of pairs of image and mask say.

    Attributes:
        number: How many pairs were looked at.
        found: Masks, or images for ``'image'``, by what is wrong with them,
            a key of ``KINDS`` or ``DOUBTS``.
    """

    number: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def look_at(self, image: str, mask: str, turns: bool | None) -> None:
        """Read the headers of a pair.

        Args:
            image: The image file.
            mask: The mask file.
            turns: Whether the image is loaded as EXIF says; None if not
                known, then sizes are not compared.
        """
        self.number += 1
        try:
            shown = read_header(mask)
        except DataError:
            self._add('unreadable', mask)
            return
        kinds = kinds_of_mask(shown)
        if turns is not None:
            try:
                kinds += kinds_of_pair(read_header(image), shown, turns)
            except DataError:
                kinds.append('image')
        for kind in kinds:
            self._add(kind, image if kind == 'image' else mask)

    def _add(self, kind: str, mask: str) -> None:
        self.found.setdefault(kind, []).append(mask)

    def findings(self, owner: str) -> Findings:
        """What is wrong, a sentence for each kind.

        Args:
            owner: Whose masks these are, such as ``BaseSegDataset of
                train_dataloader``.
        """
        result = Findings()
        for kinds, sentences in (
            (KINDS, result.errors),
            (DOUBTS, result.warnings),
        ):
            for kind, text in kinds.items():
                masks = self.found.get(kind)
                if masks:
                    what = 'images' if kind == 'image' else 'masks'
                    some = (
                        f'{len(masks)} of {self.number} {what} '
                        f'({list_some(masks, 2)})'
                    )
                    sentences.append(f'{owner}: {text.format(some)}')
        return result


def kinds_of_mask(header: Header) -> list[str]:
    """What is wrong with a mask file, by its header.

    Args:
        header: Header of the mask.

    Returns:
        Keys of ``KINDS``.
    """
    kinds = []
    if header.format in ('JPEG', 'MPO'):
        kinds.append('jpeg')
    if header.mode in COLOUR_MODES:
        kinds.append('colour')
    if header.mode in ALPHA_MODES:
        kinds.append('alpha')
    if header.orientation != NOT_TURNED:
        kinds.append('exif')
    return kinds


def kinds_of_pair(image: Header, mask: Header, turns: bool) -> list[str]:
    """What is wrong with a mask for its image, by their headers.

    Args:
        image: Header of the image.
        mask: Header of the mask.
        turns: Whether the image is loaded as EXIF says.

    Returns:
        Keys of ``KINDS`` and ``DOUBTS``.
    """
    stored = mask.size(turned=False)
    if image.size(turns) != stored:
        swapped = image.size(not turns) == stored
        return ['turned' if swapped and turns else 'size']
    if (
        turns
        and image.orientation != NOT_TURNED
        and image.size(False) == image.size(True)
    ):
        return ['mirrored']
    return []


@dataclass
class LabelSummary:
    """The labels in some masks.

    Attributes:
        classes: Names of the classes.
        pixels: Number of pixels of each label, ``(256,)``, as loaded.
        masks: How many masks were read.
        ignores_zero: Whether label 0 of the files is ignored, and label 1 is
            the first class (``reduce_zero_label``). Default: no.
    """

    classes: Sequence[str]
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(LABELS, int))
    masks: int = 0
    ignores_zero: bool = False

    def look_at(self, labels: np.ndarray) -> None:
        """Count the labels of a mask.

        Args:
            labels: The labels, ``(H, W)``, uint8.
        """
        counts = np.bincount(labels.ravel(), minlength=LABELS)
        self.pixels += counts
        self.masks += 1

    def findings(self, owner: str, number: int) -> Findings:
        """What is wrong with the labels.

        Args:
            owner: Whose masks these are.
            number: How many masks there are.
        """
        result = Findings()
        if not self.masks:
            return result
        every = 'all' if self.masks == number else f'a sample of {self.masks}'
        count = len(self.classes)
        labelled = self.pixels[:count] > 0
        if not labelled.any():
            result.errors.append(
                f'{owner}: in {every} of {number} masks no pixel has a class: '
                f'all are {IGNORED}, which is ignored'
            )
        elif (
            count == 2
            and not labelled[1]
            and labelled[0]
            and self.pixels[IGNORED]
        ):
            result.errors.append(
                f'{owner}: in {every} of {number} masks no pixel is '
                f'{self.classes[1]!r}: the labels are 0 and {IGNORED}, and '
                f'{IGNORED} is ignored. Write 1 in place of {IGNORED}'
            )
        elif self.masks == number and not labelled.all():
            absent = [
                repr(name)
                for name, present in zip(self.classes, labelled, strict=True)
                if not present
            ]
            result.warnings.append(
                f'{owner}: {len(absent)} of {count} classes have no pixel in '
                f'the {number} masks: {list_some(absent, 8)}'
                + self._hint(labelled)
            )
        return result

    def _hint(self, labelled: np.ndarray) -> str:
        """Where the labels of the masks may start."""
        if len(labelled) < 2 or not labelled[1:-1].all():
            return ''
        if self.ignores_zero and not labelled[-1] and self.pixels[IGNORED]:
            return (
                '. reduce_zero_label=True ignores label 0 and calls label 1 '
                f'{self.classes[0]!r}; set it to False if the labels count '
                'from 0'
            )
        if not self.ignores_zero and not labelled[0]:
            return (
                f'. Label 1 is called {self.classes[1]!r}; if the labels '
                'count from 1, subtract 1 from each, or set '
                'reduce_zero_label=True'
            )
        return ''


def read_labels(
    info: Mapping[str, Any], steps: Sequence[Callable]
) -> np.ndarray | None:
    """The labels of a mask, as the pipeline of its data set loads them.

    Args:
        info: The entry of the data set.
        steps: The transforms of the pipeline that load annotations.

    Returns:
        The labels, ``(H, W)``; None if the transforms load none.

    Raises:
        DataError: If the mask cannot be loaded or has bad labels.
    """
    results: Any = dict(info)
    for step in steps:
        results = step(results)
    return None if results is None else results.get('gt_seg_map')
