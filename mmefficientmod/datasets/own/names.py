"""Names and colours of the classes of own data."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmefficientmod.datasets.checks import DataError

Colour = tuple[int, int, int]
# Files that name the classes; the first that exists is read. CVAT writes the
# first, as is usual for Pascal VOC, labelme the third, Roboflow the last.
NAME_FILES = (
    'labelmap.txt', 'classes.txt', 'class_names.txt', 'labels.txt',
    'classes.csv', '_classes.csv',
)  # fmt: skip

# Stands for a file of names.
ADE20K = Path("ADE20K's classes")


@dataclass(frozen=True)
class Names:
    """Names of classes that a file gives.

    Attributes:
        path: The file.
        names: The names, in the order of the labels.
        colours: Their colours (R, G, B); empty if the file has none.
        labels: Their labels in the masks, in rising order; empty if the file
            has none.
    """

    path: Path
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    labels: tuple[int, ...] = ()


def read_names(folders: Sequence[Path]) -> Names | None:
    """Read the names of classes.

    Args:
        folders: Folders in which to look for a file of
            :data:`NAME_FILES`, the likeliest first.

    Returns:
        The names, None if there is no such file.

    Raises:
        DataError: If a line of the file does not fit, or it has no names.
    """
    for name in NAME_FILES:
        for folder in folders:
            path = folder / name
            if path.is_file():
                return _read(path)
    return None


def ade20k_names(labels: Sequence[int], masks: Sequence[str]) -> Names | None:
    """The names of ADE20K's classes, if masks have its numbers.

    They have them if they lie in its folders (``annotations/training``), no
    label is above 150, and the labels are all of ADE20K's, or have gaps as
    some of ADE20K's have.

    Args:
        labels: The labels that occur, in rising order.
        masks: The masks, relative to the folder of the data.

    Returns:
        The names; without labels if all classes occur.
    """
    from mmseg.datasets import ADE20KDataset

    classes = tuple(x.strip() for x in ADE20KDataset.METAINFO['classes'])
    colours = [tuple(x) for x in ADE20KDataset.METAINFO['palette']]
    number = len(classes)
    present = [label for label in labels if label]
    steps = {b - a for a, b in zip(labels, labels[1:], strict=False)}
    if (
        not present
        or labels[-1] > number
        or not all(mask.startswith('annotations/') for mask in masks)
    ):
        return None
    if len(present) > number // 2:
        return Names(ADE20K, classes, tuple(colours))
    if len(steps) < 2:  # without gaps, or grey values such as 0, 50, 100
        return None
    chosen = [label - 1 for label in present]
    return Names(
        ADE20K,
        tuple(classes[i] for i in chosen),
        tuple(colours[i] for i in chosen),
        tuple(present),
    )


def _read(path: Path) -> Names:
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise DataError(f'{path} is no text in UTF-8') from None
    rows = [
        (number, line.strip())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith('#')
    ]
    colours: list[Colour] = []
    labels: list[int] = []
    if path.suffix == '.csv':
        values = sorted(_read_label(path, *row) for row in rows[1:])
        labels = [label for label, _ in values]
        names = [name for _, name in values]
    elif rows and all(line.count(':') >= 2 for _, line in rows):
        pairs = [_read_colour(path, *row) for row in rows]
        names = [name for name, _ in pairs]
        colours = [colour for _, colour in pairs]
    else:
        names = [line for _, line in rows]
    if not names:
        raise DataError(f'{path} has no names; write one name a line')
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise DataError(f'{path} has the name {twice!r} more than once')
    return Names(path, tuple(names), tuple(colours), tuple(labels))


def _read_colour(path: Path, number: int, line: str) -> tuple[str, Colour]:
    """A line ``name:r,g,b:parts:actions`` of Pascal VOC's label map."""
    name, colour, *_ = line.split(':')
    try:
        red, green, blue = (int(v) for v in colour.split(','))
    except ValueError:
        raise DataError(
            f'{path}, line {number}: {line!r} is not name:red,green,blue::'
        ) from None
    return name, (red, green, blue)


def _read_label(path: Path, number: int, line: str) -> tuple[int, str]:
    """A line ``label, name``."""
    label, _, name = (part.strip() for part in line.partition(','))
    if not label.isdigit() or not name:
        raise DataError(
            f'{path}, line {number}: {line!r} is not label, name, as in 0, '
            'background; the first line has titles'
        )
    return int(label), name


def distinct_colours(number: int) -> list[Colour]:
    """Distinct colours (R, G, B) for classes.

    Args:
        number: Number of classes.
    """
    colours: list[Colour] = []
    for i in range(number):
        # The golden ratio keeps the hues of neighbours apart.
        hue, value = i * 0.618034 % 1, (1, 0.75, 0.55)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
        colours.append(
            (round(255 * red), round(255 * green), round(255 * blue))
        )
    return colours
