"""Small data sets in the layouts that users have, and configs for them."""

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmefficientmod.config.files import load_config
from mmefficientmod.config.toolbox import import_toolbox

NAMES = ('cat', 'dog', 'bird')
SPLITS = ('train', 'val')


def write_image(path: Path, height: int = 48, width: int = 64) -> None:
    """Write a smooth image of other colours for other names."""
    rows, columns = np.mgrid[:height, :width]
    shift = sum(path.name.encode()) % 256
    planes = [rows * 3 + shift, columns * 2, rows + columns + shift]
    image = np.stack(planes, 2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def coco_content(split: str, images: int = 3, names=NAMES) -> dict:
    """An annotation file with an object of each class in each image."""
    content = dict(info={}, images=[], annotations=[], categories=[])
    content['categories'] = [
        dict(id=i, name=name) for i, name in enumerate(names, 1)
    ]
    for image in range(1, images + 1):
        name = f'{split}_{image}.jpg'
        content['images'].append(
            dict(id=image, file_name=name, height=48, width=64)
        )
        for category in range(1, len(names) + 1):
            x, y, w, h = 5 * category, 3 * category, 20, 16
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=image,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
    return content


def write_coco(root: Path, edit=None, names=NAMES) -> None:
    """Write ``images/*.jpg``, ``train.json`` and ``val.json``.

    Args:
        root: Folder to write to.
        edit: Changes the content of both files, in place.
        names: Names of the categories.
    """
    for split in SPLITS:
        content = coco_content(split, names=names)
        for image in content['images']:
            write_image(root / 'images' / image['file_name'])
        if edit:
            edit(content)
        (root / f'{split}.json').write_text(json.dumps(content))


def coco_config(name: str, root: Path, **metainfo) -> Config:
    """A stock detector on the data of :func:`write_coco`."""
    cfg = load_config(name)
    import_toolbox('mmdet')
    metainfo = metainfo or dict(classes=NAMES)
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=f'{root}/',
            metainfo=metainfo,
            ann_file=f'{split}.json',
            data_prefix=dict(img='images/'),
        )
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator.ann_file = str(root / 'val.json')
    cfg.test_evaluator = cfg.val_evaluator
    number = len(metainfo['classes'])
    heads = cfg.model.get('roi_head') or cfg.model
    for head in ('bbox_head', 'mask_head'):
        if head in heads:
            heads[head].num_classes = number
    return cfg


def write_masks(root: Path, classes: int = 3, edit=None, save=None) -> None:
    """Write ``img_dir/{train,val}/*.jpg`` and ``ann_dir/{train,val}/*.png``.

    Args:
        root: Folder to write to.
        classes: Number of vertical stripes, one for each class.
        edit: Takes the labels, ``(48, 64)``, and gives the array to save.
        save: Takes the array and the path; default: saved by Pillow.
    """
    stripes = np.arange(64) * classes // 64
    labels = np.broadcast_to(stripes, (48, 64)).astype(np.uint8)
    for split in SPLITS:
        for number in range(3):
            write_image(root / f'img_dir/{split}/{number}.jpg')
            path = root / f'ann_dir/{split}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            array = labels if edit is None else edit(labels)
            if save:
                save(array, path)
            else:
                Image.fromarray(array).save(path)


def mask_config(root: Path, classes=('sky', 'wall', 'floor')) -> Config:
    """A stock Semantic FPN on the data of :func:`write_masks`."""
    cfg = load_config('mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py')
    import_toolbox('mmseg')
    cfg.model.decode_head.num_classes = len(classes)
    cfg.model.data_preprocessor.size = (32, 32)
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset = dict(
            type='BaseSegDataset',
            data_root=str(root),
            metainfo=dict(classes=classes),
            data_prefix=dict(
                img_path=f'img_dir/{split}', seg_map_path=f'ann_dir/{split}'
            ),
            pipeline=[*load, dict(type='PackSegInputs')],
        )
    cfg.test_dataloader = cfg.val_dataloader
    return cfg


def write_list(root: Path, lines: dict[str, list[str]]) -> None:
    """Write ``{train,val}/*.jpg`` and lists of the images.

    Args:
        root: Folder to write to.
        lines: The lines of ``train.txt`` and ``val.txt``.
    """
    for split in SPLITS:
        for number in range(3):
            write_image(root / split / f'{number}.jpg')
        text = '\n'.join(lines[split]) + '\n'
        (root / f'{split}.txt').write_text(text)


def list_config(root: Path, num_classes: int = 3) -> Config:
    """A stock classifier on the data of :func:`write_list`."""
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    import_toolbox('mmpretrain')
    cfg.model.head.update(num_classes=num_classes, topk=(1,))
    cfg.val_evaluator.topk = (1,)
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=32),
        dict(type='PackInputs'),
    ]
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset = dict(
            type='CustomDataset',
            data_root=str(root),
            ann_file=f'{split}.txt',
            data_prefix=split,
            pipeline=steps,
        )
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = cfg.val_evaluator
    return cfg
