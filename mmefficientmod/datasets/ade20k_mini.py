"""A miniature of ADE20K: drawn street scenes in the data set's own layout.

The classes differ in shape and colour, some of them little: grass and trees
are both green, and some cars and people come in any colour, so that the shape
alone tells which is which.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 96, 128
# Label numbers of ADE20K's annotation files; 0 is "other", which is ignored.
OTHER, BUILDING, SKY, TREE, ROAD, GRASS = 0, 2, 3, 5, 7, 10
PERSON, CAR = 13, 21
SPLITS = {'training': 96, 'validation': 24}


def write_ade20k_mini(root: Path) -> None:
    """Write images and annotations; the same ones every time.

    Args:
        root: Folder to write to, for
            ``images/{training,validation}/*.jpg`` of 96x128 pixels and
            ``annotations/{training,validation}/*.png`` with labels 0 to 150.
    """
    for split, count in SPLITS.items():
        images = root / 'images' / split
        annotations = root / 'annotations' / split
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for i in range(count):
            # Seeds of the two splits never meet.
            rng = np.random.default_rng(i + 10_000 * (split == 'validation'))
            image, labels = draw_scene(rng)
            name = f'ADE_mini_{i:08d}'
            _write(images / f'{name}.jpg', image)
            _write(annotations / f'{name}.png', labels)


def _write(path: Path, array: np.ndarray) -> None:
    if not cv2.imwrite(str(path), array):
        raise OSError(f'{path} cannot be written: is the disk full?')


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene.

    Args:
        rng: Source of all that varies.

    Returns:
        The image, ``(96, 128, 3)`` in BGR, and the labels, ``(96, 128)``,
        both uint8.
    """
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    horizon = int(rng.integers(40, 62))

    fade = np.linspace(0, 1, HEIGHT)[:, None, None]
    image[:] = (235, 190, 120) + fade * (20, 40, 90)
    labels[:] = SKY
    image[horizon:] = _vary(rng, (45, 125, 70), 12)
    labels[horizon:] = GRASS

    x = int(rng.integers(-10, 20))
    while x < WIDTH - 10:
        width, height = int(rng.integers(24, 44)), int(rng.integers(22, 50))
        if rng.random() < 0.6:
            _building(image, labels, rng, x, horizon, width, height)
        x += width + int(rng.integers(2, 16))

    # The road runs from a point on the horizon to the lower edge.
    vanish, half = int(rng.integers(30, 98)), int(rng.integers(24, 44))
    road = np.array(
        [
            (vanish - 3, horizon),
            (vanish + 3, horizon),
            (vanish + half, HEIGHT),
            (vanish - half, HEIGHT),
        ]
    )
    _fill(image, labels, road, _vary(rng, (105, 100, 100), 12), ROAD)
    line = np.array(
        [(vanish, horizon), (vanish + 2, HEIGHT), (vanish - 2, HEIGHT)]
    )
    cv2.fillPoly(image, [line], (220, 220, 220))

    for _ in range(int(rng.integers(1, 3))):
        _tree(image, labels, rng, horizon)
    for _ in range(int(rng.integers(1, 4))):
        _car(image, labels, rng, horizon)
    for _ in range(int(rng.integers(1, 4))):
        _person(image, labels, rng, horizon)
    if rng.random() < 0.3:  # something that has no label
        x, y = int(rng.integers(0, WIDTH - 14)), int(rng.integers(70, 84))
        image[y : y + 10, x : x + 14] = rng.integers(0, 256, (10, 14, 3))
        labels[y : y + 10, x : x + 14] = OTHER

    image *= rng.uniform(0.8, 1.2)
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8), labels


def _building(image, labels, rng, x, base, width, height) -> None:
    left, right = max(x, 0), min(x + width, WIDTH)
    base = base + int(rng.integers(0, 5))
    top = max(base - height, 0)
    image[top:base, left:right] = _vary(rng, (70, 90, 165), 20)
    labels[top:base, left:right] = BUILDING
    window = _vary(rng, (160, 150, 90), 40)
    for wy in range(top + 4, base - 6, 8):
        for wx in range(x + 4, x + width - 5, 8):
            if wx >= 0:
                image[wy : wy + 4, wx : wx + 4] = window


def _tree(image, labels, rng, horizon) -> None:
    x, base = int(rng.integers(6, WIDTH - 6)), horizon + int(rng.integers(12))
    size = int(rng.integers(15, 24))
    trunk = np.array([(x - 2, base), (x + 2, base), (x + 2, base - 14),
                      (x - 2, base - 14)])  # fmt: skip
    _fill(image, labels, trunk, _vary(rng, (40, 70, 105), 10), TREE)
    leaves = _vary(rng, (40, 105, 45), 15)
    for _ in range(5):
        dx, dy = rng.integers(-size // 2, size // 2 + 1, 2)
        centre = (x + int(dx), base - 14 - size // 2 + int(dy))
        radius = max(3, size // 2 + int(rng.integers(-1, 3)))
        shade = tuple(c * rng.uniform(0.75, 1.15) for c in leaves)
        cv2.circle(image, centre, radius, shade, -1)
        cv2.circle(labels, centre, radius, TREE, -1)


def _car(image, labels, rng, horizon) -> None:
    base = int(rng.integers(horizon + 12, HEIGHT - 2))
    length = 26 + (base - horizon) // 3 + int(rng.integers(0, 8))
    height = length // 2
    x = int(rng.integers(2, WIDTH - length - 2))
    body = np.array([
        (x, base), (x, base - height // 2), (x + length // 4, base - height),
        (x + 3 * length // 4, base - height),
        (x + length, base - height // 2), (x + length, base),
    ])  # fmt: skip
    _fill(image, labels, body, _paint(rng, (40, 40, 215)), CAR)
    glass = np.array([
        (x + length // 5, base - height // 2),
        (x + length // 3, base - height + 1),
        (x + 2 * length // 3, base - height + 1),
        (x + 4 * length // 5, base - height // 2),
    ])  # fmt: skip
    cv2.fillPoly(image, [glass], (200, 190, 170))
    for wheel in (x + length // 4, x + 3 * length // 4):
        cv2.circle(image, (wheel, base), height // 4, (25, 25, 25), -1)
        cv2.circle(labels, (wheel, base), height // 4, CAR, -1)


def _person(image, labels, rng, horizon) -> None:
    base = int(rng.integers(horizon + 16, HEIGHT - 1))
    height = 34 + (base - horizon) // 3
    x, width = int(rng.integers(8, WIDTH - 8)), height // 3
    top = base - height
    legs = np.array([
        (x - width // 2, base), (x - width // 2, base - height // 2),
        (x + width // 2, base - height // 2), (x + width // 2, base),
    ])  # fmt: skip
    _fill(image, labels, legs, _vary(rng, (90, 60, 50), 30), PERSON)
    axes, middle = (width // 2 + 1, height // 4), base - 5 * height // 8
    colour = _paint(rng, (40, 200, 235))
    cv2.ellipse(image, (x, middle), axes, 0, 0, 360, colour, -1)
    cv2.ellipse(labels, (x, middle), axes, 0, 0, 360, PERSON, -1)
    skin = _vary(rng, (140, 170, 215), 12)
    cv2.circle(image, (x, top + height // 8), height // 8, skin, -1)
    cv2.circle(labels, (x, top + height // 8), height // 8, PERSON, -1)


def _fill(image, labels, polygon, colour, label) -> None:
    cv2.fillPoly(image, [polygon], colour)
    cv2.fillPoly(labels, [polygon], label)


def _vary(rng, colour, amount) -> tuple[float, ...]:
    shift = rng.uniform(-amount, amount)
    return tuple(float(c + shift + rng.uniform(-6, 6)) for c in colour)


def _paint(rng, usual) -> tuple[float, ...]:
    """The usual colour of a class, or one in ten times any."""
    if rng.random() < 0.9:
        return _vary(rng, usual, 25)
    colour = np.full(3, rng.uniform(30, 90))
    colour[int(rng.integers(3))] = rng.uniform(160, 240)
    return tuple(float(c) for c in colour)
