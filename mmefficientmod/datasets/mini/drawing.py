"""Objects of which the miniatures are drawn.

Each function draws into an image, ``(H, W, 3)`` float32 in BGR, and writes a
label to the same pixels of a map, ``(H, W)`` uint8: a segmentation map, or the
mask of one object.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

Colour = tuple[float, ...]


def write_image(path: Path, array: np.ndarray) -> None:
    """Write an image file.

    Raises:
        OSError: If that fails; OpenCV only returns False.
    """
    if not cv2.imwrite(str(path), array):
        raise OSError(f'{path} cannot be written: is the disk full?')


def finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the brightness, add noise and convert to uint8."""
    image = image * rng.uniform(0.8, 1.2)
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def fill(
    image: np.ndarray,
    labels: np.ndarray,
    polygon: np.ndarray,
    colour: Colour,
    label: int,
) -> None:
    """Fill a polygon, ``(n, 2)`` points x, y, in the image and the map."""
    cv2.fillPoly(image, [polygon], colour)
    cv2.fillPoly(labels, [polygon], label)


def vary(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """A random colour near the given one."""
    shift = rng.uniform(-amount, amount)
    return tuple(float(c + shift + rng.uniform(-6, 6)) for c in colour)


def paint(rng: np.random.Generator, usual: Colour) -> Colour:
    """A colour near the usual one; in one of ten cases red, green or blue."""
    if rng.random() < 0.9:
        return vary(rng, usual, 25)
    colour = np.full(3, rng.uniform(30, 90))
    colour[int(rng.integers(3))] = rng.uniform(160, 240)
    return tuple(float(c) for c in colour)


def draw_sky(image: np.ndarray) -> None:
    """Fill an image with sky, paler towards the ground."""
    fade = np.linspace(0, 1, len(image))[:, None, None]
    image[:] = (235, 190, 120) + fade * (20, 40, 90)


def draw_car(
    image: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    x: int,
    base: int,
    length: int,
    label: int,
) -> None:
    """Draw a car from the side, half as high as long.

    Args:
        image: Image to draw into.
        labels: Map to write the label to.
        rng: Random number generator of the colours.
        x: Left end, in pixels, like the lengths below.
        base: Lower edge of the body; the wheels are centred on it.
        length: Length of the car.
        label: Label of its pixels.
    """
    height = length // 2
    body = np.array([
        (x, base), (x, base - height // 2), (x + length // 4, base - height),
        (x + 3 * length // 4, base - height),
        (x + length, base - height // 2), (x + length, base),
    ])  # fmt: skip
    fill(image, labels, body, paint(rng, (40, 40, 215)), label)
    glass = np.array([
        (x + length // 5, base - height // 2),
        (x + length // 3, base - height + 1),
        (x + 2 * length // 3, base - height + 1),
        (x + 4 * length // 5, base - height // 2),
    ])  # fmt: skip
    cv2.fillPoly(image, [glass], (200, 190, 170))
    for wheel in (x + length // 4, x + 3 * length // 4):
        cv2.circle(image, (wheel, base), height // 4, (25, 25, 25), -1)
        cv2.circle(labels, (wheel, base), height // 4, label, -1)


def draw_person(
    image: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    x: int,
    base: int,
    height: int,
    label: int,
) -> None:
    """Draw a standing person, about a third as wide as high.

    Args:
        image: Image to draw into.
        labels: Map to write the label to.
        rng: Random number generator of the colours.
        x: Horizontal centre, in pixels, like the lengths below.
        base: Lower edge.
        height: Height of the person.
        label: Label of its pixels.
    """
    width, top = height // 3, base - height
    legs = np.array([
        (x - width // 2, base), (x - width // 2, base - height // 2),
        (x + width // 2, base - height // 2), (x + width // 2, base),
    ])  # fmt: skip
    fill(image, labels, legs, vary(rng, (90, 60, 50), 30), label)
    axes, middle = (width // 2 + 1, height // 4), base - 5 * height // 8
    colour = paint(rng, (40, 200, 235))
    cv2.ellipse(image, (x, middle), axes, 0, 0, 360, colour, -1)
    cv2.ellipse(labels, (x, middle), axes, 0, 0, 360, label, -1)
    skin = vary(rng, (140, 170, 215), 12)
    cv2.circle(image, (x, top + height // 8), height // 8, skin, -1)
    cv2.circle(labels, (x, top + height // 8), height // 8, label, -1)
