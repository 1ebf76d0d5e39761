"""A miniature of COCO: drawn scenes with people, cars and stop signs.

In COCO's own layout and with its 80 categories, so that the heads keep their
size. It has what makes COCO harder than boxes: objects cut in parts by others,
small ones, crowds marked as one region, and images without any object.
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
# COCO counted 91 categories and has annotations for 80 of them.
WITHOUT_ANNOTATIONS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
SPLITS = {'train2017': 48, 'val2017': 24}


def write_coco_mini(root: Path) -> None:
    """Write images and annotations; the same ones every time.

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
            # Seeds and ids of the two splits never meet.
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
    # The data set that reads the file knows the names.
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    ids = [i for i in range(1, 92) if i not in WITHOUT_ANNOTATIONS]
    return [dict(id=i, name=name) for i, name in zip(ids, names, strict=True)]


def draw_scene(
    rng: np.random.Generator, index: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray, bool]]]:
    """One scene.

    Args:
        rng: Source of all that varies.
        index: Number of the image in its split: every twelfth is without
            objects, and every sixth has a crowd, every fourth a small person.

    Returns:
        The image, ``(64, 96, 3)`` uint8 in BGR, and for each object its
        category, its visible pixels, ``(64, 96)`` bool, and whether it is a
        crowd.
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
    # The categories take turns, so that none is rare.
    first = index % 3
    for i in range(int(rng.integers(1, 4))):
        category = list(pieces)[(first + i) % 3]
        for _ in range(10):  # until it hides no more than a third of another
            drawn = image.copy()
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            pieces[category](drawn, mask, rng)
            mask = mask > 0
            if all((m & mask).sum() <= m.sum() / 3 for _, m, _ in objects):
                image = drawn
                objects = [(c, m & ~mask, crowd) for c, m, crowd in objects]
                objects.append((category, mask, False))
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
    # Blue, since the cars are mostly red.
    colour = vary(rng, (190, 60, 40), 25)
    fill(image, mask, corners.round().astype(int), colour, 1)
    bar = (x - radius // 2, y - 2), (x + radius // 2, y + 2)
    cv2.rectangle(image, *bar, (235, 235, 235), -1)


def _box(mask: np.ndarray) -> list[float]:
    """Box of a mask as COCO writes it: x, y, width, height."""
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    x, y = columns[0], rows[0]
    width, height = columns[-1] - x + 1, rows[-1] - y + 1
    return [float(v) for v in (x, y, width, height)]


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline of each part of a mask, as COCO writes it.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        For each part ``[x1, y1, x2, y2, ...]`` in pixels, along the edges
        of the pixels.
    """
    # A contour runs through the centres of pixels; on an enlarged mask that
    # is close to their edges.
    zoom = 4
    large = np.kron(mask.astype(np.uint8), np.ones((zoom, zoom), np.uint8))
    contours, _ = cv2.findContours(
        large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [((c.reshape(-1) + 0.5) / zoom).round(2).tolist() for c in contours]


def rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Run lengths of a mask, as COCO writes a crowd.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        ``size`` and ``counts``: the lengths of runs down the columns, of
        which the first is one of zeros.
    """
    flat = np.concatenate([[0], mask.reshape(-1, order='F'), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends)
    if counts[-1] == 0:
        counts = counts[:-1]
    return dict(size=list(mask.shape), counts=counts.tolist())
