"""Small folders of own data, in the layouts that annotation tools write."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
NAMES = ('cat', 'dog')


def write_image(path, seed=0):
    """An image of noise; the folders around it are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)


def write_mask(path, labels=(0, 1, 2), colours=None):
    """A mask of stripes with the labels, or with their colours (R, G, B)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.arange(WIDTH) * len(labels) // WIDTH
    mask = np.tile(np.array(labels, np.uint8)[stripes], (HEIGHT, 1))
    if colours:
        mask = np.array(colours, np.uint8)[mask]
    Image.fromarray(mask).save(path)


def coco_content(files, names=NAMES, masks=True, first_id=0):
    """A file in COCO's format: one object of each category in each image.

    Args:
        files: Names of the images.
        names: Names of the categories, with ids from ``first_id``.
        masks: Whether the objects have polygons.
        first_id: The id of the first category.
    """
    objects = []
    for image in range(len(files)):
        for i, _ in enumerate(names):
            x, y, width, height = 4 + 20 * i, 4, 20, 30
            polygon = [
                x,
                y,
                x + width,
                y,
                x + width,
                y + height,
                x,
                y + height,
            ]
            objects.append(
                dict(
                    id=len(objects) + 1, image_id=image,
                    category_id=first_id + i, bbox=[x, y, width, height],
                    area=width * height, iscrowd=0,
                    segmentation=[polygon] if masks else [],
                )
            )  # fmt: skip
    return dict(
        info={},
        images=[
            dict(id=i, file_name=name, width=WIDTH, height=HEIGHT)
            for i, name in enumerate(files)
        ],
        categories=[
            dict(id=first_id + i, name=n, supercategory='')
            for i, n in enumerate(names)
        ],
        annotations=objects,
    )


def write_coco(path, content, images=None):
    """A file in COCO's format.

    Args:
        path: The file.
        content: From :func:`coco_content`.
        images: Folder in which its images are written. Default: none are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content['images'] if images else []:
        write_image(Path(images, image['file_name']), image['id'])


def write_pairs(places, count=3, labels=(0, 1, 2), **options):
    """Images and masks.

    Args:
        places: Paths of an image and of a mask, with ``{}`` for a number.
        count: Number of images for each pair of places.
        labels: Labels of the masks.
        **options: Those of :func:`write_mask`.
    """
    for image, mask in places:
        for i in range(count):
            write_image(image.format(i), i)
            write_mask(mask.format(i), labels, **options)


def write_classes(*folders, count=3):
    """Images in folders."""
    for folder in folders:
        for i in range(count):
            write_image(Path(folder, f'{i}.jpg'), i)
