"""A miniature of COCO: drawn scenes with people, cars and stop signs.

It has COCO's layout and 80 categories, so that heads keep their size, and
COCO's difficult cases: objects that others divide into parts, small objects,
crowds annotated as one region, and images without objects.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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

HEIGHT, WIDTH = 64, 96
# Category ids of COCO's annotation files.
PERSON, CAR, STOP_SIGN = 1, 3, 13
# Ids run to 91, but only 80 of these categories have annotations.
WITHOUT_ANNOTATIONS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
SPLITS = {'train2017': 48, 'val2017': 24}


def write_coco_mini(root: Path) -> None:
    """Write images and annotations, the same ones each time.

    Args:
        root: Folder to write to, for ``{train,val}2017/*.jpg`` of 64x96
            pixels and ``annotations/instances_{train,val}2017.json``.
    """
    (root / 'annotations').mkdir(parents=True)
    for split, count in SPLITS.items():
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            # Different seeds and ids in the two splits.
            number = i + 10_000 * (split == 'val2017')
            image, objects = draw_scene(np.random.default_rng(number), i)
            name = f'{number:012d}.jpg'
            write_image(root / split / name, image)
            images.append(
                dict(id=number, file_name=name, height=HEIGHT, width=WIDTH)
            )
            for j, (category, mask, crowd) in enumerate(objects):
                annotations.append(
                    dict(
                        id=100 * number + j + 1,
                        image_id=number,
                        category_id=category,
                        bbox=_box(mask),
                        area=float(mask.sum()),
                        iscrowd=int(crowd),
                        segmentation=rle(mask) if crowd else polygons(mask),
                    )
                )
        content = dict(
            images=images, annotations=annotations, categories=_categories()
        )
        path = root / 'annotations' / f'instances_{split}.json'
        path.write_text(json.dumps(content))


def _categories() -> list[dict[str, Any]]:
    # The names are those of the class that reads the file.
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    ids = [i for i in range(1, 92) if i not in WITHOUT_ANNOTATIONS]
    return [dict(id=i, name=name) for i, name in zip(ids, names, strict=True)]


def draw_scene(
    rng: np.random.Generator, index: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, bool]]]:
    """Draw a scene.

    Args:
        rng: Random number generator of the scene.
        index: Number of the image in its split. Every twelfth image has no
            objects, every sixth a crowd, and every fourth a small person.

    Returns:
        The image, ``(64, 96, 3)`` uint8 in BGR; and for each object its
        category, the mask of its visible pixels, ``(64, 96)`` bool, and
        whether it is a crowd.
    """
    image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    horizon = int(rng.integers(22, 32))
    draw_sky(image)
    image[horizon:] = vary(rng, (45, 125, 70), 12)
    if index % 12 == 11:
        return finish(image, rng), []

    objects: list[tuple[int, np.ndarray, bool]] = []
    if index % 6 == 1:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        left = int(rng.integers(6, WIDTH - 40))
        for i in range(7):
            base = horizon + int(rng.integers(3, 8))
            draw_person(image, mask, rng, left + 5 * i, base, 14, 1)
        objects.append((PERSON, mask > 0, True))
    if index % 4 == 2:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        x = int(rng.integers(6, WIDTH - 6))
        draw_person(image, mask, rng, x, horizon + 6, 15, 1)
        objects.append((PERSON, mask > 0, False))
    pieces = {PERSON: _person, CAR: _car, STOP_SIGN: _stop_sign}
    # Categories in turn, so that none is rare.
    first = index % 3
    for i in range(int(rng.integers(1, 4))):
        category = list(pieces)[(first + i) % 3]
        # Up to 10 places, until it hides at most a third of each other object.
        for _ in range(10):
            drawn = image.copy()
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            pieces[category](drawn, mask, rng)
            new = mask > 0
            if all((m & new).sum() <= m.sum() / 3 for _, m, _ in objects):
                image = drawn
                objects = [(c, m & ~new, crowd) for c, m, crowd in objects]
                objects.append((category, new, False))
                break
    return finish(image, rng), objects


def _person(image, mask, rng) -> None:
    height = int(rng.integers(30, 45))
    x, base = int(rng.integers(8, WIDTH - 8)), int(rng.integers(48, 64))
    draw_person(image, mask, rng, x, base, height, 1)


def _car(image, mask, rng) -> None:
    length = int(rng.integers(30, 48))
    x, base = int(rng.integers(0, WIDTH - length)), int(rng.integers(44, 60))
    draw_car(image, mask, rng, x, base, length, 1)


def _stop_sign(image, mask, rng) -> None:
    radius = int(rng.integers(9, 14))
    x, y = int(rng.integers(14, WIDTH - 14)), int(rng.integers(16, 34))
    cv2.rectangle(image, (x - 1, y), (x + 1, y + 26), (130, 130, 130), -1)
    angles = np.pi / 8 + np.arange(8) * np.pi / 4
    corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius + (x, y)
    # Blue, since most cars are red.
    colour = vary(rng, (190, 60, 40), 25)
    fill(image, mask, corners.round().astype(int), colour, 1)
    bar = (x - radius // 2, y - 2), (x + radius // 2, y + 2)
    cv2.rectangle(image, *bar, (235, 235, 235), -1)


def _box(mask: np.ndarray) -> list[float]:
    """Box of a mask in COCO's format: x, y, width, height."""
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    x, y = columns[0], rows[0]
    width, height = columns[-1] - x + 1, rows[-1] - y + 1
    return [float(v) for v in (x, y, width, height)]


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a mask in COCO's format.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        For each connected part ``[x1, y1, x2, y2, ...]`` in pixels, along the
        edges of its pixels.
    """
    # OpenCV's contours run through the centres of the outermost pixels. In an
    # enlarged mask these are close to the edges of the original pixels.
    zoom = 4
    large = cv2.resize(
        mask.astype(np.uint8),
        None,
        fx=zoom,
        fy=zoom,
        interpolation=cv2.INTER_NEAREST,
    )
    contours, _ = cv2.findContours(
        large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [((c.reshape(-1) + 0.5) / zoom).round(2).tolist() for c in contours]


def rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Run lengths of a mask, COCO's format of crowds.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        ``size``, which is H and W; and ``counts``, the lengths of runs of
        equal pixels down the columns, starting with a run of zeros.
    """
    flat = np.concatenate([[0], mask.reshape(-1, order='F'), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends)
    if counts[-1] == 0:
        counts = counts[:-1]
    return dict(size=list(mask.shape), counts=counts.tolist())
