"""How far a file in 8 bits is from PyTorch: its noise, in decibels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from mmefficientmod.deploy.checking import match_objects

# Least ratio of signal to noise of an output, in dB: the noise has a tenth
# of the signal's power.
LEAST_SQNR = 10.0
# Least share of equal labels of pixels, or of objects that are found.
LEAST_EQUAL = 0.5
# Objects below this score are not compared: many are near the threshold.
CONFIDENT = 0.3
# Boxes of the same label that overlap so much are the same object.
OVERLAP = 0.5


@dataclass(frozen=True)
class Noise:
    """The noise of a file's outputs.

    Attributes:
        ratios: Ratio of signal to quantisation noise (SQNR) of each output of
            float numbers, in dB, over all images.
        equal: Share of the labels that are equal, or of the objects that are
            found.
        text: Both in words.
    """

    ratios: dict[str, float]
    equal: float
    text: str

    @property
    def is_low(self) -> bool:
        """Whether it is within the bounds; false for NaN."""
        return self.equal >= LEAST_EQUAL and all(
            ratio >= LEAST_SQNR for ratio in self.ratios.values()
        )


def measure_noise(
    pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
) -> Noise:
    """Measure the noise of a file over several images.

    Detections are compared as sets, those with a score of 0.3 or more: an
    object is found if one of the same label overlaps it by half.

    Args:
        pairs: Outputs of the file and of PyTorch, by name, for each input.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    equal = count = found_objects = 0
    unit = 'labels'
    for found, expected in pairs:
        if 'boxes' in expected:
            unit = 'objects'
            first, second = _confident(found), _confident(expected)
            matched = len(match_objects(first, second, OVERLAP))
            equal += matched
            # Objects that are missing and those that are too many.
            objects = len(second['boxes']), len(first['boxes'])
            count += max(objects)
            found_objects += objects[1]
            continue
        for name, value in expected.items():
            if value.dtype.kind in 'iu':
                equal += int((found[name] == value).sum())
                count += value.size
                continue
            exact = value.astype(np.float64)
            error = found[name].astype(np.float64) - exact
            signal[name] = signal.get(name, 0.0) + float((exact**2).sum())
            noise[name] = noise.get(name, 0.0) + float((error**2).sum())
    ratios = {k: decibels(signal[k], noise[k]) for k in signal}
    share = equal / count if count else 1.0
    texts = [f'{name}: {value:.1f} dB' for name, value in ratios.items()]
    if unit == 'objects':
        texts.append(
            f'{equal} of {count} objects with a score of {CONFIDENT:g} or '
            f'more are equal ({found_objects} in the file)'
        )
    elif count:
        texts.append(f'{share:.2%} of the {unit} equal')
    return Noise(ratios, share, ', '.join(texts))


def decibels(signal: float, noise: float) -> float:
    """Ratio of two powers, in dB; -inf for a noise that is not finite."""
    if not math.isfinite(noise):
        return -math.inf
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _confident(objects: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = objects['scores'] >= CONFIDENT
    return {k: v[kept] for k, v in objects.items()}
