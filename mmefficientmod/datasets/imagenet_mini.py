"""A miniature of ImageNet: drawings of ten of its thousand classes.

Some are easy to tell apart by shape or texture. Some are not: an orange and a
Granny Smith differ in colour alone, a balloon has any colour, and a ladybug
has an orange's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .drawing import finish, vary, write_image

SIDE = 80
# Images of each class.
SPLITS = {'train': 24, 'val': 8}


def write_imagenet_mini(root: Path) -> None:
    """Write images and labels; the same ones every time.

    Args:
        root: Folder to write to, for ``train/WNID/*.JPEG`` and
            ``val/*.JPEG`` of 80x80 pixels, as ImageNet names them, and
            ``meta/{train,val}.txt`` with a file and its label, 0 to 999, in
            a line.
    """
    (root / 'meta').mkdir(parents=True)
    for split, count in SPLITS.items():
        lines = []
        for i in range(count):
            for j, (label, wnid, draw) in enumerate(CLASSES):
                number = len(lines)
                name = f'ILSVRC2012_val_{number + 1:08d}.JPEG'
                if split == 'train':
                    name = f'{wnid}/{wnid}_{i + 1}.JPEG'
                path = root / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Seeds of the two splits never meet.
                rng = np.random.default_rng([split == 'val', i, j])
                write_image(path, draw_picture(draw, rng))
                lines.append(f'{name} {label}\n')
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))


def draw_picture(draw: Callable, rng: np.random.Generator) -> np.ndarray:
    """One picture: a background of soft patches and the object.

    Args:
        draw: One of the functions in ``CLASSES``.
        rng: Source of all that varies.

    Returns:
        ``(80, 80, 3)`` uint8 in BGR.
    """
    patches = rng.uniform(60, 200, (3, 3, 3)).astype(np.float32)
    image = cv2.resize(patches, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    centre = tuple(int(v) for v in rng.integers(34, SIDE - 33, 2))
    draw(image, rng, centre, int(rng.integers(20, 32)))
    return finish(image, rng)


def _disc(image, rng, centre, radius, colour) -> None:
    cv2.circle(image, centre, radius, colour, -1)
    x, y = centre
    shine = tuple(min(c + 60, 255) for c in colour)
    cv2.circle(
        image, (x - radius // 3, y - radius // 3), radius // 5, shine, -1
    )


def _balloon(image, rng, centre, radius) -> None:
    x, y = centre
    colour = tuple(float(c) for c in rng.uniform(20, 250, 3))
    cv2.line(image, (x, y), (x + int(rng.integers(-6, 7)), SIDE), (40,) * 3, 1)
    cv2.ellipse(
        image, centre, (2 * radius // 3, radius), 0, 0, 360, colour, -1
    )


def _ladybug(image, rng, centre, radius) -> None:
    x, y = centre
    cv2.circle(image, (x, y - radius), radius // 2, (20, 20, 20), -1)
    cv2.circle(image, centre, radius, vary(rng, (30, 40, 215), 20), -1)
    cv2.line(image, (x, y - radius), (x, y + radius), (20, 20, 20), 2)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        spot = (x + dx * radius // 2, y + dy * radius // 2)
        cv2.circle(image, spot, radius // 5, (20, 20, 20), -1)


def _starfish(image, rng, centre, radius) -> None:
    angles = rng.uniform(0, 2 * np.pi) + np.arange(10) * np.pi / 5
    radii = radius * np.where(np.arange(10) % 2, 0.4, 1.1)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    star = (points + centre).round().astype(int)
    cv2.fillPoly(image, [star], vary(rng, (90, 140, 220), 30))


def _zebra(image, rng, centre, radius) -> None:
    mask = np.zeros(image.shape[:2], np.uint8)
    turn = float(rng.uniform(-30, 30))
    cv2.ellipse(mask, centre, (radius, 3 * radius // 4), turn, 0, 360, 1, -1)
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.deg2rad(turn + rng.uniform(-20, 20))
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.8)
    stripes = np.where(wave > 0, 235.0, 25.0)[..., None]
    image[:] = np.where(mask[..., None] > 0, stripes, image)


def _crossword(image, rng, centre, radius) -> None:
    cells, side = 6, radius // 3
    x, y = (c - cells * side // 2 for c in centre)
    for i in range(cells):
        for j in range(cells):
            left, top = x + i * side, y + j * side
            colour = (25,) * 3 if rng.random() < 0.35 else (240,) * 3
            end = (left + side - 1, top + side - 1)
            cv2.rectangle(image, (left, top), end, colour, -1)
            cv2.rectangle(image, (left, top), end, (25,) * 3, 1)


def _street_sign(image, rng, centre, radius) -> None:
    x, y = centre
    cv2.rectangle(image, (x - 2, y), (x + 2, SIDE), (120,) * 3, -1)
    corners = (x - radius, y - radius // 2), (x + radius, y + radius // 2)
    cv2.rectangle(image, *corners, vary(rng, (60, 120, 20), 15), -1)
    for dy in (-radius // 6, radius // 6):
        line = (x - 2 * radius // 3, y + dy), (x + 2 * radius // 3, y + dy)
        cv2.line(image, *line, (240,) * 3, 2)


def _traffic_light(image, rng, centre, radius) -> None:
    x, y = centre
    corners = (x - radius // 2, y - radius), (x + radius // 2, y + radius)
    cv2.rectangle(image, *corners, vary(rng, (40, 40, 40), 10), -1)
    lamps = ((40, 40, 240), (40, 200, 240), (60, 220, 60))
    for dy, lamp in zip((-1, 0, 1), lamps, strict=True):
        spot = (x, y + dy * 2 * radius // 3)
        cv2.circle(image, spot, radius // 4, lamp, -1)


def _granny_smith(image, rng, centre, radius) -> None:
    _disc(image, rng, centre, radius, vary(rng, (60, 190, 130), 15))


def _orange(image, rng, centre, radius) -> None:
    _disc(image, rng, centre, radius, vary(rng, (20, 130, 240), 15))


def _banana(image, rng, centre, radius) -> None:
    start = float(rng.uniform(0, 360))
    axes = (radius, 2 * radius // 3)
    colour = vary(rng, (40, 215, 240), 15)
    cv2.ellipse(image, centre, axes, start, 0, 170, colour, radius // 3)


# Label, as MMPretrain counts the classes, name of the folder and picture.
CLASSES: tuple[tuple[int, str, Callable], ...] = (
    (301, 'n02165456', _ladybug),
    (327, 'n02317335', _starfish),
    (340, 'n02391049', _zebra),
    (417, 'n02782093', _balloon),
    (918, 'n06785654', _crossword),
    (919, 'n06794110', _street_sign),
    (920, 'n06874185', _traffic_light),
    (948, 'n07742313', _granny_smith),
    (950, 'n07747607', _orange),
    (954, 'n07753592', _banana),
)
