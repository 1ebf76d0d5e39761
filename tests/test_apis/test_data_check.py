"""``tools/check_data.py``: every image, mask, box and label is looked at."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image
from small_data import (
    coco_config,
    list_config,
    mask_config,
    write_coco,
    write_list,
    write_masks,
)

from mmefficientmod.apis.data_check import check_data, loaded_label
from mmefficientmod.datasets.inspection import Entry, inspect_all

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def vary(root):
    """Give each image other bytes, so that none is a copy."""
    for number, path in enumerate(sorted(root.rglob('*.jpg'))):
        image = np.array(Image.open(path)) // 2 + 5 * number
        Image.fromarray(image.astype(np.uint8)).save(path)


def test_objects_are_counted_and_copies_found(tmp_path):
    write_coco(tmp_path)
    vary(tmp_path)
    train, val = check_data(coco_config(RETINANET, tmp_path))
    assert (train.loader, val.loader) == ('train_dataloader', 'val_dataloader')
    assert train.kind == 'objects'
    assert train.counts == val.counts == dict(cat=3, dog=3, bird=3)
    assert train.sizes == [(64, 48)] * 3
    assert train.findings.errors == train.findings.warnings == []
    images = tmp_path / 'images'
    shutil.copy(images / 'train_1.jpg', images / 'val_2.jpg')
    train, _ = check_data(coco_config(RETINANET, tmp_path))
    (warning,) = train.findings.warnings
    assert '2 of 6 image files are copies' in warning
    assert 'train_1.jpg = ' in warning


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[:-40])


def grow(path):
    Image.open(path).resize((65, 48)).save(path)


# What happens to an image, and words about it.
IMAGES = {
    'cut off': (cut, 'cut off'),
    'text': (lambda path: path.write_text('hello'), 'cannot be decoded'),
    'empty': (lambda path: path.write_bytes(b''), 'cannot be decoded'),
    'missing': (lambda path: path.unlink(), 'does not exist'),
    'larger': (grow, 'has another size than its annotation file says'),
}


@pytest.mark.parametrize('kind', IMAGES)
def test_bad_image_is_named(tmp_path, kind):
    change, words = IMAGES[kind]
    write_coco(tmp_path)
    vary(tmp_path)
    change(tmp_path / 'images/val_3.jpg')
    _, val = check_data(coco_config(RETINANET, tmp_path))
    assert any('val_3.jpg' in x and words in x for x in val.findings.errors)
    assert [x.image for x in val.offenders] == [
        str(tmp_path / 'images/val_3.jpg')
    ]


def test_cut_png_is_named_and_bytes_behind_an_image_are_accepted(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    image[::2] = np.random.default_rng(0).integers(0, 255, (20, 40, 3))
    for name in ('a.png', 'b.jpg'):
        cv2.imwrite(str(tmp_path / name), image)
    cut(tmp_path / 'a.png')
    with open(tmp_path / 'b.jpg', 'ab') as file:
        file.write(bytes(200))
    entries = [Entry(str(tmp_path / x)) for x in ('a.png', 'b.jpg')]
    one, two = inspect_all(entries, 1)
    assert one.image_kinds
    assert two.image_kinds == []


def test_pixels_are_counted_and_bad_labels_named(tmp_path):
    write_masks(tmp_path)
    vary(tmp_path)
    (train, _) = check_data(mask_config(tmp_path))
    assert train.kind == 'pixels'
    assert sum(train.counts.values()) == 3 * 48 * 64
    assert train.findings.errors == train.findings.warnings == []
    labels = np.full((48, 64), 7, np.uint8)
    Image.fromarray(labels).save(tmp_path / 'ann_dir/train/2.png')
    (train, _) = check_data(mask_config(tmp_path))
    assert any('the label 7' in x for x in train.findings.errors)


@pytest.mark.parametrize(
    ('stored', 'reduce', 'label_map', 'loaded'),
    [
        (3, False, None, 3),
        (3, True, None, 2),
        (0, True, None, 255),
        (255, True, None, 255),
        (3, False, {3: 0}, 0),
        (3, True, {2: 9}, 9),
    ],
)
def test_label_is_that_of_mmsegmentation(stored, reduce, label_map, loaded):
    assert loaded_label(stored, reduce, label_map) == loaded


def test_images_of_each_label_are_counted(tmp_path):
    lines = ['0.jpg 0', '1.jpg 1', '2.jpg 1']
    write_list(tmp_path, dict(train=lines, val=lines))
    cfg = list_config(tmp_path)
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader].dataset.metainfo = dict(classes=('a', 'b', 'c'))
    train, _ = check_data(cfg)
    assert (train.kind, train.counts) == ('images', dict(a=1, b=2, c=0))


def test_processes_find_the_same_in_the_same_order(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'images/val_1.jpg').write_text('hello')
    images = sorted(map(str, (tmp_path / 'images').iterdir()))
    entries = [Entry(path) for path in images] * 8  # more than a chunk
    done = []
    assert list(inspect_all(entries, 2, done.append)) == list(
        inspect_all(entries, 1)
    )
    assert sum(done) == len(entries)


def test_tool_prints_what_is_wrong_and_writes_the_page(
    tmp_path, tool, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_coco(
        tmp_path, lambda c: c['annotations'][0].update(bbox=[9, 9, 5, 0])
    )
    vary(tmp_path)
    coco_config(RETINANET, tmp_path).dump('config.py')
    reports = tool('check_data').main(['config.py'])
    printed = capsys.readouterr().out
    assert '1 of 9 annotations are not used' in printed
    assert 'bird' in printed
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<figure>') == len(reports[0].offenders) + 1 == 2
    assert '>annotation 1: they are narrower' in page.replace(
        f'{tmp_path}/images/train_1.jpg: ', ''
    )
    assert not re.search(r'(src|href)="(?!data:)', page)
    (tmp_path / 'train.json').write_text(json.dumps([]))
    with pytest.raises(SystemExit) as stop:
        tool('check_data').main(['config.py', '--out', 'pages/x.html'])
    assert stop.value.code == 1
    assert 'it is a list' in capsys.readouterr().out
    assert (tmp_path / 'pages/x.html').is_file()
