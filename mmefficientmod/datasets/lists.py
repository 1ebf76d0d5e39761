"""Lists of images and labels, as MMPretrain's ``CustomDataset`` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmefficientmod.datasets.checks import DataError
from mmefficientmod.messages import shorten


def read_labels_of_list(path: str | Path) -> list[int]:
    """The labels in a list with a line ``NAME LABEL`` for each image.

    Args:
        path: The file.

    Returns:
        The labels, one for each line.

    Raises:
        DataError: If the list is empty, or a line has no label, a comma in
            place of the space, or a label that is no number from 0 up. The
            message has the number of the line.
    """
    try:
        text = Path(path).read_text(encoding='utf-8')
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is no text in UTF-8') from error
    if not text.strip():
        raise DataError(f'{path} is empty; write a line NAME LABEL per image')
    return list(_labels(text, path))


def _labels(text: str, path: str | Path) -> Iterator[int]:
    for number, line in enumerate(text.splitlines(), 1):
        place = f'{path}, line {number}'
        shown = shorten(line, 60) if line.strip() else ''
        name, space, label = line.strip().rpartition(' ')
        if not shown:
            raise DataError(f'{place} is blank; remove it')
        if not space or not name:
            raise DataError(
                f'{place}: {shown!r} has no label after a space'
                + ('; write a space for the comma' if ',' in line else '')
            )
        if not (label.isascii() and label.isdigit()):
            raise DataError(
                f'{place}: the label {shorten(label, 30)!r} is no number; '
                'labels are numbers from 0 up'
            )
        yield int(label)


def check_range(
    labels: list[int], num_classes: int, path: str | Path, owner: str
) -> str | None:
    """What is wrong with the labels of a list, for a number of classes.

    Args:
        labels: One for each line.
        num_classes: The number of classes.
        path: The list.
        owner: What has the classes, such as ``the head``.

    Returns:
        A sentence; None if all labels are below the number of classes.
    """
    bad = [i for i, label in enumerate(labels) if label >= num_classes]
    if not bad:
        return None
    label = labels[bad[0]]
    sentence = (
        f'{path}, line {bad[0] + 1}: the label {label} is out of range; '
        f'{owner} has {num_classes} classes, with the labels 0 to '
        f'{num_classes - 1}'
    )
    if min(labels) == 1 and max(labels) == num_classes:
        return f'{sentence}. The labels count from 1; subtract 1 from each'
    return f'{sentence}. Set num_classes to {max(labels) + 1}'
