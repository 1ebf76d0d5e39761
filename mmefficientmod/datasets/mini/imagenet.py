"""A miniature of ImageNet: drawings of eight of its thousand classes.

Each picture shows its object several times, since a random crop, which may be
a twelfth of the picture, and mixing would leave little of a single object.
Texture or shape tells most classes apart. Three are round: an orange and a
Granny Smith differ in colour only, a ladybug has spots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from .drawing import finish, vary, write_image

SIDE = 80
# Images per class.
SPLITS = {'train': 32, 'val': 15}


def write_imagenet_mini(root: Path) -> None:
    """Write images and labels, the same ones each time.

    Args:
        root: Folder to write to, for ``train/WNID/*.JPEG`` and
            ``val/*.JPEG`` of 80x80 pixels, named as in ImageNet, and
            ``meta/{train,val}.txt``, whose lines are a file and its label, 0
            to 999.
    """
    (root / 'meta').mkdir(parents=True)
    for split, count in SPLITS.items():
        lines: list[str] = []
        for i in range(count):
            for j, (label, wnid, _, draw) in enumerate(CLASSES):
                number = len(lines)
                name = f'ILSVRC2012_val_{number + 1:08d}.JPEG'
                if split == 'train':
                    name = f'{wnid}/{wnid}_{i + 1}.JPEG'
                path = root / split / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Different seeds in the two splits.
                rng = np.random.default_rng([split == 'val', i, j])
                write_image(path, draw_picture(draw, rng))
                lines.append(f'{name} {label}\n')
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))


def write_folder_mini(root: Path) -> None:
    """Write the same pictures in the layout of a user's class folders.

    Args:
        root: Folder to write to, for ``{train,val}/NAME/*.jpg`` of 80x80
            pixels.
    """
    for split, count in SPLITS.items():
        for j, (_, _, name, draw) in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([split == 'val', i, j])
                image = draw_picture(draw, rng)
                write_image(folder / f'{name}_{i + 1}.jpg', image)


def draw_picture(draw: Callable, rng: np.random.Generator) -> np.ndarray:
    """Draw a picture: a blurred background and the object several times.

    Args:
        draw: A drawing function of ``CLASSES``.
        rng: Random number generator of the picture.

    Returns:
        ``(80, 80, 3)`` uint8 in BGR.
    """
    patches = rng.uniform(90, 170, (3, 3, 3)).astype(np.float32)
    image = cv2.resize(patches, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    places = int(rng.integers(2, 4))
    step = SIDE / places
    for i in range(places**2):
        place = np.array([i % places + 0.5, i // places + 0.5]) * step
        place += rng.uniform(-0.15, 0.15, 2) * step
        radius = int(step * rng.uniform(0.35, 0.5))
        draw(image, rng, tuple(int(v) for v in place), radius)
    return finish(image, rng)


def _granny_smith(image, rng, centre, radius) -> None:
    _disc(image, centre, radius, vary(rng, (60, 190, 130), 15))


def _orange(image, rng, centre, radius) -> None:
    _disc(image, centre, radius, vary(rng, (20, 130, 240), 15))


def _disc(image, centre, radius, colour) -> None:
    x, y = centre
    cv2.circle(image, centre, radius, colour, -1)
    shine = tuple(min(c + 60, 255) for c in colour)
    spot = (x - radius // 3, y - radius // 3)
    cv2.circle(image, spot, radius // 5, shine, -1)


def _ladybug(image, rng, centre, radius) -> None:
    x, y = centre
    black = (20, 20, 20)
    cv2.circle(image, (x, y - radius), radius // 2, black, -1)
    cv2.circle(image, centre, radius, vary(rng, (30, 40, 215), 20), -1)
    cv2.line(image, (x, y - radius), (x, y + radius), black, 2)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        spot = (x + dx * radius // 2, y + dy * radius // 2)
        cv2.circle(image, spot, max(radius // 4, 2), black, -1)


def _starfish(image, rng, centre, radius) -> None:
    angles = rng.uniform(0, 2 * np.pi) + np.arange(10) * np.pi / 5
    radii = radius * np.where(np.arange(10) % 2, 0.4, 1.1)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    star = (points + centre).round().astype(int)
    cv2.fillPoly(image, [star], vary(rng, (160, 100, 200), 30))


def _banana(image, rng, centre, radius) -> None:
    start = float(rng.uniform(0, 360))
    axes = (radius, 2 * radius // 3)
    colour = vary(rng, (40, 215, 240), 15)
    cv2.ellipse(image, centre, axes, start, 0, 170, colour, radius // 2)


def _zebra(image, rng, centre, radius) -> None:
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.circle(mask, centre, int(1.2 * radius), 1, -1)
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.deg2rad(rng.uniform(-40, 40))
    wave = np.sin(x * np.cos(angle) + y * np.sin(angle))
    stripes = np.where(wave > 0, 235.0, 25.0)[..., None]
    image[:] = np.where(mask[..., None] > 0, stripes, image)


def _crossword(image, rng, centre, radius) -> None:
    side = 6
    cells = 2 * radius // side + 1
    x, y = (c - cells * side // 2 for c in centre)
    for i in range(cells**2):
        left, top = x + i % cells * side, y + i // cells * side
        end = (left + side, top + side)
        colour = (25,) * 3 if rng.random() < 0.35 else (240,) * 3
        cv2.rectangle(image, (left, top), end, colour, -1)
        cv2.rectangle(image, (left, top), end, (25,) * 3, 1)


def _traffic_light(image, rng, centre, radius) -> None:
    x, y = centre
    corners = (x - radius // 2, y - radius), (x + radius // 2, y + radius)
    cv2.rectangle(image, *corners, vary(rng, (40, 40, 40), 10), -1)
    lamps = ((40, 40, 240), (40, 200, 240), (60, 220, 60))
    for dy, lamp in zip((-1, 0, 1), lamps, strict=True):
        spot = (x, y + dy * 2 * radius // 3)
        cv2.circle(image, spot, radius // 4, lamp, -1)


# Label in MMPretrain's order, WordNet id, name and drawing function.
CLASSES: tuple[tuple[int, str, str, Callable], ...] = (
    (301, 'n02165456', 'ladybug', _ladybug),
    (327, 'n02317335', 'starfish', _starfish),
    (340, 'n02391049', 'zebra', _zebra),
    (918, 'n06785654', 'crossword', _crossword),
    (920, 'n06874185', 'traffic_light', _traffic_light),
    (948, 'n07742313', 'granny_smith', _granny_smith),
    (950, 'n07747607', 'orange', _orange),
    (954, 'n07753592', 'banana', _banana),
)
