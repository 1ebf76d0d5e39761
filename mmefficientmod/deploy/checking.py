"""Comparing the outputs of a file with those of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Boxes of the same label that overlap so much are the same object.
SAME_OBJECT = 0.9
# So many labels of pixels, or objects, may differ: two classes, or two boxes,
# can have scores that are equal up to rounding.
MAY_DIFFER = 1e-3


@dataclass(frozen=True)
class Difference:
    """How far the outputs of a file are from those of PyTorch.

    Attributes:
        largest: Largest difference of a value, relative to the largest value
            of its output.
        output: Name of that output.
        other: Share of the labels, or of the objects, that differ.
        text: The comparison in words.
    """

    largest: float
    output: str
    other: float
    text: str

    def within(self, tolerance: float) -> bool:
        """Whether it is at most a tolerance; false for NaN."""
        return self.largest <= tolerance and (
            self.other <= max(MAY_DIFFER, tolerance)
        )


def compare(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    others: Sequence[Mapping[str, np.ndarray]] = (),
) -> Difference:
    """Compare the outputs of a file with those of PyTorch.

    Args:
        found: Outputs of the file, by name.
        expected: Outputs of PyTorch, by name.
        others: Outputs of PyTorch for images that differ by rounding. An
            object that is not in all of them is not compared.
    """
    if 'boxes' in expected:
        return _compare_objects(found, expected, others)
    largest, output, other, texts = 0.0, next(iter(expected)), 0.0, []
    for name, value in expected.items():
        if found[name].shape != value.shape:
            shapes = f'{found[name].shape} and not {value.shape}'
            return Difference(float('inf'), name, 1.0, f'{name}: {shapes}')
        if value.dtype.kind in 'iu':
            other = float((found[name] != value).mean())
            texts.append(f'{name}: {1 - other:.4%} equal')
            continue
        difference = _relative(found[name], value)
        texts.append(f'{name}: {difference:.1e}')
        if not difference <= largest:  # also of NaN
            largest, output = difference, name
    return Difference(largest, output, other, ', '.join(texts))


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.abs(difference).max()) / scale


def _compare_objects(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    others: Sequence[Mapping[str, np.ndarray]],
) -> Difference:
    """Compare detections as sets, since equal scores have no order."""
    stable, known = np.ones(len(expected['boxes']), bool), []
    for variation in others:
        kept = [j for _, j in match_objects(variation, expected, SAME_OBJECT)]
        stable &= np.isin(np.arange(len(stable)), kept)
        known += [i for i, _ in match_objects(found, variation, SAME_OBJECT)]
    pairs = match_objects(found, expected, SAME_OBJECT)
    known += [i for i, _ in pairs]
    compared = [(i, j) for i, j in pairs if stable[j]]
    missing = int(stable.sum()) - len(compared)
    unstable = len(stable) - int(stable.sum())
    surplus = len(found['boxes']) - len({*known})
    # Those of the file may be like none of the variations.
    surplus = max(surplus - unstable, 0)
    # One object more or less may be a matter of rounding at the threshold.
    wrong = missing + surplus if missing + surplus > 1 else 0
    largest, output = 0.0, 'boxes'
    first = np.array([i for i, _ in compared], int)
    second = np.array([j for _, j in compared], int)
    for name, value in expected.items():
        if name == 'labels':
            continue
        difference = _relative(found[name][first], value[second])
        if not difference <= largest:
            largest, output = difference, name
    text = (
        f'{len(compared)} of {stable.sum()} objects found '
        f'({len(found["boxes"])} in the file), largest difference '
        f'{largest:.1e} ({output})'
    )
    if unstable:
        text += f'; {unstable} more depend on rounding in PyTorch as well'
    share = wrong / max(len(found['boxes']), len(expected['boxes']), 1)
    return Difference(largest, output, share, text)


def match_objects(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    overlap: float,
) -> list[tuple[int, int]]:
    """Indices of the same objects in both, the best scores first.

    Args:
        found: ``boxes``, ``scores`` and ``labels`` of a file.
        expected: Those of PyTorch.
        overlap: Least intersection over union of two boxes of an object.
    """
    pairs = []
    free = np.ones(len(found['boxes']), bool)
    for i in np.argsort(-expected['scores'], kind='stable'):
        same = free & (found['labels'] == expected['labels'][i])
        candidates = np.flatnonzero(same)
        if not len(candidates):
            continue
        overlaps = _overlaps(expected['boxes'][i], found['boxes'][candidates])
        best = int(overlaps.argmax())
        if overlaps[best] >= overlap:
            pairs.append((int(candidates[best]), int(i)))
            free[candidates[best]] = False
    return pairs


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box ``(4,)`` with others ``(n, 4)``."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    whole = (box[2:] - box[:2]).prod() + areas - common
    # A box without area is the same as itself.
    equal = (box == boxes).all(1)
    return np.where(equal, 1.0, common / np.maximum(whole, 1e-12))
