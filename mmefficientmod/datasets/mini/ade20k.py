"""A miniature of ADE20K: drawn street scenes in ADE20K's layout.

The classes differ in shape and colour, but colour alone does not tell them
apart: grass and trees are both green, and some cars and people have a random
colour.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .drawing import (
    draw_car,
    draw_person,
    draw_sky,
    fill,
    finish,
    vary,
    write_image,
)

HEIGHT, WIDTH = 96, 128
# Label numbers of ADE20K's annotation files; 0 is "other", which is ignored.
OTHER, BUILDING, SKY, TREE, ROAD, GRASS = 0, 2, 3, 5, 7, 10
PERSON, CAR = 13, 21
SPLITS = {'training': 96, 'validation': 24}


def write_ade20k_mini(root: Path) -> None:
    """Write images and annotations, the same ones each time.

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
            # Different seeds in the two splits.
            rng = np.random.default_rng(i + 10_000 * (split == 'validation'))
            image, labels = draw_scene(rng)
            name = f'ADE_mini_{i:08d}'
            write_image(images / f'{name}.jpg', image)
            write_image(annotations / f'{name}.png', labels)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Args:
        rng: Random number generator of the scene.

    Returns:
        The image, ``(96, 128, 3)`` in BGR, and the labels, ``(96, 128)``,
        both uint8.
    """
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    horizon = int(rng.integers(40, 62))

    draw_sky(image)
    labels[:] = SKY
    image[horizon:] = vary(rng, (45, 125, 70), 12)
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
    fill(image, labels, road, vary(rng, (105, 100, 100), 12), ROAD)
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
    if rng.random() < 0.3:  # an object without a label
        x, y = int(rng.integers(0, WIDTH - 14)), int(rng.integers(70, 84))
        image[y : y + 10, x : x + 14] = rng.integers(0, 256, (10, 14, 3))
        labels[y : y + 10, x : x + 14] = OTHER

    return finish(image, rng), labels


def _building(image, labels, rng, x, base, width, height) -> None:
    left, right = max(x, 0), min(x + width, WIDTH)
    base = base + int(rng.integers(0, 5))
    top = max(base - height, 0)
    image[top:base, left:right] = vary(rng, (70, 90, 165), 20)
    labels[top:base, left:right] = BUILDING
    window = vary(rng, (160, 150, 90), 40)
    for wy in range(top + 4, base - 6, 8):
        for wx in range(x + 4, x + width - 5, 8):
            if wx >= 0:
                image[wy : wy + 4, wx : wx + 4] = window


def _tree(image, labels, rng, horizon) -> None:
    x, base = int(rng.integers(6, WIDTH - 6)), horizon + int(rng.integers(12))
    size = int(rng.integers(15, 24))
    trunk = np.array([(x - 2, base), (x + 2, base), (x + 2, base - 14),
                      (x - 2, base - 14)])  # fmt: skip
    fill(image, labels, trunk, vary(rng, (40, 70, 105), 10), TREE)
    leaves = vary(rng, (40, 105, 45), 15)
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
    x = int(rng.integers(2, WIDTH - length - 2))
    draw_car(image, labels, rng, x, base, length, CAR)


def _person(image, labels, rng, horizon) -> None:
    base = int(rng.integers(horizon + 16, HEIGHT - 1))
    height = 34 + (base - horizon) // 3
    x = int(rng.integers(8, WIDTH - 8))
    draw_person(image, labels, rng, x, base, height, PERSON)
