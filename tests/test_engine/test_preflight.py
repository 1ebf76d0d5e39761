"""What is wrong with a user's data, said before the first iteration."""

import builtins
import copy
import gzip
import json

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image
from small_data import (
    NAMES,
    coco_config,
    list_config,
    mask_config,
    write_coco,
    write_image,
    write_list,
    write_masks,
)

from mmefficientmod import swap_backbone
from mmefficientmod.datasets import DataError
from mmefficientmod.datasets.own import apply_own
from mmefficientmod.engine.preflight import Preflight
from mmefficientmod.engine.runner import build_runner

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def look(cfg, mode='train'):
    preflight = Preflight(cfg, mode)
    preflight.run()
    return preflight


def errors(cfg, mode='train'):
    with pytest.raises(DataError) as caught:
        look(cfg, mode)
    return str(caught.value)


def each(key, change):
    """An edit of every annotation, or of its key."""

    def edit(content):
        for entry in content['annotations']:
            change(entry) if key is None else entry.update({key: change})

    return edit


def first(**changes):
    return lambda content: content['annotations'][0].update(changes)


def drop(key, entry='annotations'):
    def edit(content):
        for x in content[entry]:
            x.pop(key)

    return edit


# A change of both annotation files, and words of the message.
BAD_FILES = {
    'no area': (drop('area'), "9 of 9 annotations have no 'area'"),
    'no box': (drop('bbox'), "annotations have no 'bbox'"),
    'no id': (drop('id'), "annotations have no 'id'"),
    'no size': (drop('width', 'images'), "3 of 3 images have no 'width'"),
    'size 0': (
        lambda c: c['images'][1].update(width=0),
        "image 2, 'train_2.jpg', width 0",
    ),
    'no categories': (lambda c: c.pop('categories'), "it has no 'categories'"),
    'images is a dict': (
        lambda c: c.update(images={}),
        "'images' is a dict",
    ),
    'an image is a name': (
        lambda c: c.update(images=['a.jpg']),
        "entry 0 of 'images' is a str",
    ),
    'image id twice': (
        lambda c: c['images'][1].update(id=1),
        '1 ids of images occur more than once (1)',
    ),
    'annotation id twice': (
        lambda c: c['annotations'][1].update(id=1),
        '1 ids of annotations occur more than once (1)',
    ),
    'category name twice': (
        lambda c: c['categories'].append(dict(id=9, name='cat')),
        "several categories have the name 'cat'",
    ),
    'unknown category': (
        first(category_id=77),
        'annotation 1, category_id 77',
    ),
    'NaN in a box': (
        first(bbox=[float('nan'), 0, 5, 5]),
        'annotation 1 of train_1.jpg',
    ),
    'NaN in a polygon': (
        first(segmentation=[[1, 2, float('nan'), 4, 5, 6]]),
        'annotation 1 of train_1.jpg',
    ),
    'infinite area': (first(area=float('inf')), 'an infinite number'),
    'text in a polygon': (
        first(segmentation=[['a', 2, 3, 4, 5, 6]]),
        'a wrong type as a coordinate',
    ),
    'flat polygon': (
        first(segmentation=[1, 2, 3, 4, 5, 6]),
        'a wrong type as a coordinate',
    ),
    'box of three': (first(bbox=[1, 2, 3]), 'annotation 1 has the bbox [1,'),
    'RLE of another size': (
        first(segmentation=dict(size=[9, 9], counts=[0, 81])),
        'another size than their image',
    ),
    'RLE whose sum is another': (
        first(segmentation=dict(size=[48, 64], counts='abc')),
        'are damaged or have another size',
    ),
    'RLE of text': (
        first(segmentation=dict(size=[48, 64], counts=['0', '3072'])),
        'are damaged or have another size',
    ),
    'empty RLE': (
        first(segmentation=dict(size=[48, 64], counts='')),
        'are damaged or have another size',
    ),
    'mask as text': (first(segmentation='[[1, 2, 3]]'), 'a wrong type'),
    'numbers of a box as text': (
        each('bbox', ['5', '3', '20', '16']),
        "annotation 1 has the bbox ['5', '3', '20', '16']",
    ),
    'id is null': (first(id=None), "1 of 9 annotations have no 'id'"),
    'image_id is a list': (first(image_id=[1]), 'has the image_id [1]'),
    'category_id is text': (
        first(category_id='1'),
        "category_id '1'), which has 1 and not '1'",
    ),
    'image_id is text': (
        each('image_id', '1'),
        "no id of the images, which has 1 and not '1'",
    ),
    'name is a number': (
        lambda c: c['categories'][0].update(name=1),
        'category 1 has the name 1, which is no text',
    ),
    'iscrowd is text': (
        first(iscrowd='0'),
        "a value of 'iscrowd' that is neither 0 nor 1",
    ),
    'all boxes empty': (
        each('bbox', [3, 3, 0, 4]),
        'train.json has no object to train on: of 9 annotations',
    ),
    'all crowds': (each('iscrowd', 1), 'has no object to train on'),
    'all outside': (each('bbox', [99, 3, 5, 4]), 'no object to train on'),
    'no images': (
        lambda c: c.update(images=[], annotations=[]),
        'train.json has no images',
    ),
    'backslash': (
        lambda c: c['images'][0].update(file_name='a\\train_1.jpg'),
        'write / in place of \\',
    ),
    'missing image': (
        lambda c: c['images'][0].update(file_name='x.jpg'),
        '1 of 3 images do not exist',
    ),
    'suffix in upper case': (
        lambda c: c['images'][0].update(file_name='train_1.JPG'),
        'images has train_1.jpg',
    ),
    'another size': (
        lambda c: [x.update(height=47) for x in c['images']],
        'is 64x48, 64x47',
    ),
}


@pytest.mark.parametrize('kind', BAD_FILES)
def test_bad_coco_file_is_refused(tmp_path, kind):
    edit, words = BAD_FILES[kind]
    write_coco(tmp_path, edit)
    message = errors(coco_config(RETINANET, tmp_path))
    assert words in message
    assert 'train.json' in message or 'train_1.jpg' in message


TEXTS = {
    'list': ('[]', 'it is a list'),
    'empty': ('', 'the file ends within the JSON text'),
    'cut off': ('{"images": [', 'the file ends within the JSON text'),
    'not JSON': ('images:\n - a', 'line 1, column 1: no JSON'),
    'comma': ('{"images": [],\n}', 'line 2'),
    'Git LFS': (
        'version https://git-lfs.github.com/spec/v1\n',
        'git lfs pull',
    ),
}


@pytest.mark.parametrize('kind', TEXTS)
def test_file_that_is_not_coco_is_refused(tmp_path, kind):
    text, words = TEXTS[kind]
    write_coco(tmp_path)
    (tmp_path / 'train.json').write_text(text)
    message = errors(coco_config(RETINANET, tmp_path))
    assert f'{tmp_path}/train.json' in message
    assert words in message


def test_binary_file_is_refused(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'train.json').write_bytes(b'\xff\xfe\x00')
    assert 'no text in UTF-8' in errors(coco_config(RETINANET, tmp_path))


def test_packed_file_is_refused(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / 'train.json'
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert 'unpack this archive' in errors(coco_config(RETINANET, tmp_path))


def byte_order_mark(root):
    for path in root.glob('*.json'):
        path.write_text('\ufeff' + path.read_text(), encoding='utf-8')


GOOD_FILES = {
    'as it is': None,
    'no iscrowd': drop('iscrowd'),
    'no info': lambda c: c.pop('info'),
    'other ids': lambda c: [x.update({k: x[k] * 7}) for x, k in _ids(c)],
}


def _ids(content):
    for x in content['annotations']:
        yield x, 'category_id'
    for x in content['categories']:
        yield x, 'id'


@pytest.mark.parametrize('kind', GOOD_FILES)
def test_good_coco_file_is_accepted(tmp_path, kind):
    write_coco(tmp_path, GOOD_FILES[kind])
    byte_order_mark(tmp_path)
    preflight = look(coco_config(MASK_RCNN, tmp_path))
    assert preflight.findings.warnings == []
    assert len(preflight.datasets['train_dataloader']) == 3
    api = preflight.evaluators['val_evaluator'].metrics[0]._coco_api
    assert len(api.getAnnIds(iscrowd=False)) == 9


# A change, and words of the warning.
DOUBTFUL = {
    'crowd': (first(iscrowd=1), 'since they are crowds'),
    'empty box': (first(bbox=[3, 3, 0, 4]), 'narrower or lower than a pixel'),
    'negative box': (first(bbox=[9, 9, -5, -4]), 'narrower or lower'),
    'no area': (first(area=0), 'narrower or lower than a pixel'),
    'outside': (first(bbox=[-20, -20, 5, 5]), 'outside of their image'),
    'ignored': (first(ignore=1), 'marked as ignored'),
    'image unknown': (first(image_id=99), 'no id of the images'),
    'polygon of two points': (
        first(segmentation=[[1, 2, 3, 4]]),
        '1 of 9 objects have no mask (annotation 1)',
    ),
    'odd polygon': (
        first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        'have no mask',
    ),
    'polygon outside': (
        first(segmentation=[[99, 99, 120, 99, 120, 120]]),
        'have no mask',
    ),
    'polygon in parts of the size': (
        first(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]),
        'have no mask',
    ),
    'RLE without a pixel': (
        first(segmentation=dict(size=[48, 64], counts=[48 * 64])),
        'have no mask',
    ),
    'no mask': (first(segmentation=None), 'have no mask'),
    'image without objects': (
        lambda c: c.update(annotations=c['annotations'][:6]),
        '1 of 3 images of',
    ),
    'small image': (
        lambda c: c['images'][0].update(width=20, file_name='small.jpg'),
        '1 of 3 images of',
    ),
    'image file twice': (
        lambda c: c['images'][1].update(file_name='train_1.jpg'),
        '1 image files have several entries in images (train_1.jpg)',
    ),
    'class without objects': (
        lambda c: c.update(annotations=c['annotations'][:2]),
        "1 of 3 classes have no object: 'bird'",
    ),
}


@pytest.mark.parametrize('kind', DOUBTFUL)
def test_unused_objects_are_counted(tmp_path, kind):
    edit, words = DOUBTFUL[kind]
    write_image(tmp_path / 'images/small.jpg', width=20)
    write_coco(tmp_path, edit)
    warnings = look(coco_config(MASK_RCNN, tmp_path)).findings.warnings
    assert any('train.json' in x and words in x for x in warnings)


def perfect_predictions(preflight):
    """What the metric gives for predictions equal to the annotations."""
    dataset = preflight.datasets['val_dataloader']
    evaluator = preflight.evaluators['val_evaluator']
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]['data_samples']
        truth = sample.gt_instances
        boxes = truth.bboxes.tensor
        masks = torch.zeros(len(boxes), 48, 64, dtype=torch.bool)
        for mask, (x, y, right, bottom) in zip(
            masks, boxes.int().tolist(), strict=True
        ):
            mask[y:bottom, x:right] = True
        sample.pred_instances = InstanceData(
            bboxes=boxes,
            labels=truth.labels,
            scores=torch.ones(len(boxes)),
            masks=masks,
        )
        evaluator.process([sample.to_dict()], {})
    return evaluator.evaluate(len(dataset))


# A change of one annotation, and the expected AP of boxes.
EVALUATED = {
    'id 0': (first(id=0), 1),
    'id of text': (first(id='a'), 1),
    'iscrowd in some': (lambda c: c['annotations'][0].pop('iscrowd'), 1),
    'iscrowd null': (first(iscrowd=None), 1),
    # The object is ignored in loading, so that nothing is predicted for it.
    'polygon of two points': (first(segmentation=[[1, 2, 3, 4]]), 8 / 9),
    'no polygon': (first(segmentation=[]), 8 / 9),
    'one of two polygons': (
        lambda c: c['annotations'][0]['segmentation'].insert(0, [1, 2, 3, 4]),
        1,
    ),
}


@pytest.mark.parametrize('kind', EVALUATED)
def test_annotations_can_be_evaluated(tmp_path, kind):
    edit, expected = EVALUATED[kind]
    write_coco(tmp_path, edit)
    found = perfect_predictions(look(coco_config(MASK_RCNN, tmp_path)))
    for metric in ('bbox', 'segm'):
        ap = found[f'coco/{metric}_mAP']
        assert ap == pytest.approx(expected, abs=2e-3)


def test_boxes_alone_are_refused_by_mask_rcnn(tmp_path):
    write_coco(tmp_path, drop('segmentation'))
    look(coco_config(RETINANET, tmp_path))
    message = errors(coco_config(MASK_RCNN, tmp_path))
    assert 'train.json: 9 of 9 objects have no mask' in message
    assert 'RetinaNet' in message


CLASSES = {
    'misspelt': (
        ('cat', 'dgo', 'bird'),
        "'dgo' in its classes is no category",
    ),
    'other order': (
        ('dog', 'cat', 'bird'),
        "'cat' would be called 'dog'",
    ),
    'space': (('cat ', 'dog', 'bird'), "'cat ' and 'cat' differ in spaces"),
    'of COCO': (None, "'person', 'bicycle', 'car'"),
}


@pytest.mark.parametrize('kind', CLASSES)
def test_classes_are_compared_with_the_file(tmp_path, kind):
    classes, words = CLASSES[kind]
    write_coco(tmp_path)
    cfg = coco_config(RETINANET, tmp_path)
    for loader in ('train_dataloader', 'val_dataloader'):
        metainfo = dict(classes=classes) if classes else {}
        cfg[loader].dataset.metainfo = metainfo
    message = errors(cfg)
    assert words in message
    assert "metainfo=dict(classes=('cat', 'dog', 'bird'))" in message


def test_some_of_the_classes_are_accepted(tmp_path):
    write_coco(tmp_path)
    cfg = coco_config(RETINANET, tmp_path, classes=('cat', 'bird'))
    warnings = look(cfg).findings.warnings
    assert any(
        '3 objects of other classes' in x and "'dog'" in x for x in warnings
    )


def test_all_mistakes_are_listed(tmp_path):
    write_coco(tmp_path)
    (tmp_path / 'val.json').write_text('[]')
    cfg = coco_config(RETINANET, tmp_path)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat', 'dgo'))
    cfg.val_evaluator.ann_file = 'missing.json'
    message = errors(cfg)
    assert message.startswith('3 mistakes')
    for words in ("'dgo'", 'val.json', 'missing.json does not exist'):
        assert words in message


def test_metric_of_other_images_is_refused(tmp_path):
    write_coco(tmp_path)
    other = dict(images=[], categories=[], annotations=[{}])
    (tmp_path / 'other.json').write_text(json.dumps(other))
    cfg = coco_config(RETINANET, tmp_path)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    message = errors(cfg)
    assert 'does not have all images of' in message
    assert 'set val_evaluator.ann_file' in message


def reorder(content):
    content['categories'].reverse()


def rename(content):
    content['categories'][0]['name'] = 'kitten'


def other_images(content):
    for image in content['images']:
        image['file_name'] = f'other_{image["file_name"]}'


@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (reorder, 'in another order'),
        (rename, 'has other categories'),
        (other_images, 'does not have all images'),
    ],
)
def test_metric_of_another_file_is_refused(tmp_path, edit, words):
    write_coco(tmp_path)
    content = json.loads((tmp_path / 'val.json').read_text())
    edit(content)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg = coco_config(RETINANET, tmp_path)
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    assert words in errors(cfg)


def test_metric_of_masks_for_boxes_is_refused(tmp_path):
    write_coco(tmp_path)
    cfg = coco_config(RETINANET, tmp_path)
    cfg.val_evaluator.metric = ['bbox', 'segm']
    assert "set val_evaluator.metric='bbox'" in errors(cfg)


# A change of the data set for training, and words of the message.
BAD_SETTINGS = {
    'prefix is text': (dict(data_prefix='images/'), 'dict(img='),
    'metainfo is a list': (dict(metainfo=list(NAMES)), 'is no dict'),
    'classes are a dict': (
        dict(metainfo=dict(classes=dict(cat=0, dog=1, bird=2))),
        'has no order of labels',
    ),
    'classes are a set': (
        dict(metainfo=dict(classes={*NAMES})),
        'classes is a set',
    ),
    'no indices': (dict(indices=0), 'indices=0 leaves no image'),
}


@pytest.mark.parametrize('kind', BAD_SETTINGS)
def test_bad_setting_of_a_data_set_is_refused(tmp_path, kind):
    changes, words = BAD_SETTINGS[kind]
    write_coco(tmp_path)
    cfg = coco_config(RETINANET, tmp_path)
    for key, value in changes.items():
        cfg.train_dataloader.dataset[key] = value
    assert words in errors(cfg)


def test_parts_with_another_order_of_classes_are_refused(tmp_path):
    write_coco(tmp_path)
    content = json.loads((tmp_path / 'train.json').read_text())
    reorder(content)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    cfg = coco_config(RETINANET, tmp_path)
    part = cfg.train_dataloader.dataset
    other = copy.deepcopy(part)
    other.ann_file = 'other.json'
    other.metainfo = dict(classes=NAMES[::-1])
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[part, other]
    )
    assert 'a part of train_dataloader has other classes' in errors(cfg)


def test_data_loader_without_a_batch_is_refused(tmp_path):
    write_coco(tmp_path)
    cfg = coco_config(RETINANET, tmp_path)
    cfg.train_dataloader.update(drop_last=True, batch_size=4)
    assert 'train_dataloader: drop_last=True' in errors(cfg)
    cfg.train_dataloader.batch_size = 3
    look(cfg)


def test_test_set_without_annotations(tmp_path):
    write_coco(tmp_path)
    content = json.loads((tmp_path / 'val.json').read_text())
    del content['annotations']
    (tmp_path / 'val.json').write_text(json.dumps(content))
    cfg = coco_config(RETINANET, tmp_path)
    assert 'set format_only=True' in errors(cfg, 'test')
    cfg.test_evaluator.update(format_only=True, outfile_prefix='results')
    look(cfg, 'test')


@pytest.mark.parametrize('part', ['step', 'folder'])
def test_metric_of_masks_that_are_not_there(tmp_path, part):
    write_masks(tmp_path)
    cfg = mask_config(tmp_path)
    dataset = cfg.test_dataloader.dataset
    if part == 'folder':
        del dataset.data_prefix.seg_map_path
    else:
        del dataset.pipeline[1]
    assert 'has no masks to compare' in errors(cfg, 'test')
    if part == 'folder':
        del dataset.pipeline[1]
    cfg.test_evaluator.update(format_only=True, output_dir='out')
    look(cfg, 'test')


def test_metric_of_labels_that_are_not_there(tmp_path):
    write_list(tmp_path, dict(train=['0.jpg'], val=['0.jpg']))
    cfg = list_config(tmp_path)
    cfg.test_dataloader.dataset.with_label = False
    assert 'has no labels to compare' in errors(cfg, 'test')


@pytest.fixture
def opened(monkeypatch):
    """Paths of the files that Python opens as text, as to parse them."""
    paths = []
    real = builtins.open

    def counting(path, mode='r', *args, **kwargs):
        if 'b' not in mode:
            paths.append(str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, 'open', counting)
    return paths


def test_each_annotation_file_is_read_once(tmp_path, opened):
    write_coco(tmp_path)
    cfg = coco_config(MASK_RCNN, tmp_path)
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    cfg.work_dir = str(tmp_path / 'run')
    cfg.default_hooks.pop('visualization')
    preflight = look(cfg)
    runner = build_runner(cfg)
    preflight.hand_over(runner)
    train = preflight.datasets['train_dataloader']
    assert runner.train_loop.dataloader.dataset.wrapped is train
    assert runner.val_loop.evaluator is preflight.evaluators['val_evaluator']
    for split in ('train', 'val'):
        assert opened.count(str(tmp_path / f'{split}.json')) == 1


def test_annotation_file_of_a_folder_is_read_once(tmp_path, opened):
    write_coco(tmp_path)
    cfg = coco_config(MASK_RCNN, tmp_path)
    apply_own(cfg, str(tmp_path), trains=True)
    look(cfg)
    for split in ('train', 'val'):
        assert opened.count(str(tmp_path / f'{split}.json')) == 1


def turn(path):
    """Store an image turned by 90 degrees, with the EXIF tag for it."""
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def test_image_that_exif_turns(tmp_path):
    write_coco(tmp_path)
    for path in (tmp_path / 'images').glob('*.jpg'):
        turn(path)
    cfg = coco_config(MASK_RCNN, tmp_path)
    look(cfg)  # the annotations are of the image as shown
    for step in (
        cfg.train_dataloader.dataset.pipeline[0],
        cfg.val_dataloader.dataset.pipeline[0],
    ):
        step.color_type = 'color_ignore_orientation'
    assert 'is 48x64, 64x48' in errors(cfg)


def test_images_that_exif_mirrors_are_said(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / 'images/train_2.jpg'
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(path, exif=exif)
    warnings = look(coco_config(RETINANET, tmp_path)).findings.warnings
    assert any('EXIF mirrors or turns 1 of 3' in x for x in warnings)


def as_jpeg(array, path):
    Image.fromarray(array).save(path, format='JPEG')


def as_tiff(array, path):
    Image.fromarray(array).save(path, format='TIFF')


def with_palette(array, path):
    image = Image.fromarray(array).convert('P')
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)


MASKS = {
    '16 bits': (
        dict(edit=lambda x: x.astype(np.uint16) + 256),
        'has the label 256',
    ),
    'parts of 1': (
        dict(edit=lambda x: x + np.float32(0.5), save=as_tiff),
        'has the label 0.5; labels are whole numbers',
    ),
    'NaN': (
        dict(edit=lambda x: x * np.float32('nan'), save=as_tiff),
        'has the label nan; labels are whole numbers',
    ),
    'label too high': (dict(edit=lambda x: x + 5), 'has the label 5'),
    'JPEG': (dict(save=as_jpeg), 'are JPEG files'),
    'RGB': (
        dict(edit=lambda x: np.stack([x] * 3, 2)),
        'are colour images',
    ),
    'RGBA': (
        dict(save=lambda x, p: Image.fromarray(x).convert('RGBA').save(p)),
        'are colour images',
    ),
    'grey and alpha': (
        dict(save=lambda x, p: Image.fromarray(x).convert('LA').save(p)),
        'have a second channel',
    ),
    'other size': (dict(edit=lambda x: x[:24, :32]), 'another size'),
    'all ignored': (dict(edit=lambda x: x * 0 + 255), 'no pixel has a class'),
}


@pytest.mark.parametrize('kind', MASKS)
def test_bad_masks_are_refused(tmp_path, kind):
    options, words = MASKS[kind]
    write_masks(tmp_path, **options)
    message = errors(mask_config(tmp_path))
    assert words in message
    assert 'ann_dir/train/' in message or 'train_dataloader' in message


def test_masks_of_0_and_255_are_refused(tmp_path):
    write_masks(tmp_path, classes=2, edit=lambda x: x * 255)
    message = errors(mask_config(tmp_path, ('background', 'object')))
    assert "no pixel is 'object'" in message
    assert 'Write 1 in place of 255' in message


@pytest.mark.parametrize('save', [None, with_palette])
def test_good_masks_are_accepted(tmp_path, save):
    write_masks(tmp_path, save=save)
    assert look(mask_config(tmp_path)).findings.warnings == []


def test_wide_masks_of_small_labels_are_accepted(tmp_path):
    write_masks(tmp_path, edit=lambda x: x.astype(np.uint16))
    look(mask_config(tmp_path))


def test_more_classes_than_labels_are_refused(tmp_path):
    write_masks(tmp_path)
    names = [f'class {number}' for number in range(256)]
    assert 'at most 255 classes' in errors(mask_config(tmp_path, names))


@pytest.mark.parametrize(
    ('ignores_zero', 'edit', 'words'),
    [
        (True, None, "calls label 1 'sky'"),
        (False, lambda x: x.clip(1), "Label 1 is called 'wall'"),
    ],
)
def test_labels_that_may_start_elsewhere_are_said(
    tmp_path, ignores_zero, edit, words
):
    write_masks(tmp_path, edit=edit)
    cfg = mask_config(tmp_path)
    cfg.train_dataloader.dataset.reduce_zero_label = ignores_zero
    assert any(words in x for x in look(cfg).findings.warnings)


def test_images_that_are_not_used_are_said(tmp_path):
    write_masks(tmp_path)
    write_image(tmp_path / 'img_dir/train/other.png')
    (tmp_path / 'img_dir/val/3.jpg').symlink_to('missing.jpg')
    warnings = look(mask_config(tmp_path)).findings.warnings
    assert any('1 images' in x and 'other.png' in x for x in warnings)
    assert any('links to files' in x and '3.jpg' in x for x in warnings)


def test_absent_classes_are_said(tmp_path):
    write_masks(tmp_path, classes=2)
    warnings = look(mask_config(tmp_path)).findings.warnings
    assert any(
        '1 of 3 classes have no pixel' in x and "'floor'" in x
        for x in warnings
    )


def test_missing_mask_is_named(tmp_path):
    write_masks(tmp_path)
    (tmp_path / 'ann_dir/train/1.png').unlink()
    message = errors(mask_config(tmp_path))
    assert '1 of 3 masks do not exist' in message
    assert 'ann_dir/train/1.png' in message


def test_suffix_in_upper_case_is_said(tmp_path):
    write_masks(tmp_path)
    for name in ('a', 'b'):
        write_image(tmp_path / f'img_dir/train/{name}.JPG')
    warnings = look(mask_config(tmp_path)).findings.warnings
    assert any('2 files' in x and 'a.JPG' in x for x in warnings)


def test_images_of_another_suffix_are_said(tmp_path):
    write_masks(tmp_path)
    cfg = mask_config(tmp_path)
    cfg.train_dataloader.dataset.img_suffix = '.bmp'
    message = errors(cfg)
    assert 'no file of' in message
    assert 'set img_suffix' in message


def test_mask_of_an_image_that_exif_turns(tmp_path):
    write_masks(tmp_path)
    turn(tmp_path / 'img_dir/train/1.jpg')
    look(mask_config(tmp_path))  # the mask is of the image as shown
    mask = Image.open(tmp_path / 'ann_dir/train/1.png')
    mask.transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / 'ann_dir/train/1.png'
    )
    message = errors(mask_config(tmp_path))
    assert 'EXIF turns by 90 degrees' in message
    assert 'color_ignore_orientation' in message


LISTS = {
    'labels from 1': (['0.jpg 1', '1.jpg 2', '2.jpg 3'], 'count from 1'),
    'label too high': (
        ['0.jpg 0', '1.jpg 9', '2.jpg 1'],
        'line 2: the label 9',
    ),
    'no label': (['0.jpg 0', '1.jpg'], "line 2: '1.jpg' has no label"),
    'comma': (['0.jpg,0'], 'write a space for the comma'),
    'word': (['0.jpg cat'], "the label 'cat' is no number"),
    'negative': (['0.jpg -1'], "the label '-1' is no number"),
    'blank line': (['0.jpg 0', '', '1.jpg 1'], 'line 2 is blank'),
    'empty': ([''], 'is empty'),
    'missing image': (['0.jpg 0', 'x.jpg 1'], 'x.jpg'),
}


@pytest.mark.parametrize('kind', LISTS)
def test_bad_list_is_refused(tmp_path, kind):
    lines, words = LISTS[kind]
    good = ['0.jpg 0', '1.jpg 1', '2.jpg 2']
    write_list(tmp_path, dict(train=lines, val=good))
    message = errors(list_config(tmp_path))
    assert words in message
    assert 'train' in message


def test_good_list_is_accepted(tmp_path):
    lines = ['0.jpg 0', '1.jpg 1', '2.jpg 2']
    write_list(tmp_path, dict(train=lines, val=lines))
    look(list_config(tmp_path))


def test_imagenet_of_other_folders_is_refused(tmp_path):
    for split in ('train', 'val'):
        for name in 'ab':
            write_image(tmp_path / f'{split}/{name}/1.jpg')
    cfg = list_config(tmp_path, num_classes=1000)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset = dict(
            type='ImageNet', data_root=str(tmp_path), split=split, pipeline=[]
        )
    message = errors(cfg)
    assert 'train has 2 class folders, and the data set 1000' in message
    assert 'CustomDataset' in message


def test_other_class_folders_in_training_are_refused(tmp_path):
    for split in ('train', 'val'):
        for name in 'ab':
            write_image(tmp_path / f'{split}/{name}/1.jpg')
    cfg = list_config(tmp_path, num_classes=3)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.pop('ann_file')
    look(cfg)
    (tmp_path / 'train/aa').mkdir()
    assert 'than train_dataloader (aa)' in errors(cfg)


def test_list_with_suffixes_that_the_data_set_adds(tmp_path):
    write_masks(tmp_path)
    (tmp_path / 'train.txt').write_text('0.jpg\n1.jpg\n')
    cfg = mask_config(tmp_path)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    message = errors(cfg)
    assert '2 of 2 images do not exist' in message
    assert 'write names without .jpg in the list' in message


def test_images_that_cannot_be_read_are_named(tmp_path):
    write_coco(tmp_path / 'coco')
    (tmp_path / 'coco/images/train_2.jpg').write_text('hello')
    message = errors(coco_config(RETINANET, tmp_path / 'coco'))
    assert '1 of 3 images' in message
    assert 'train_2.jpg) cannot be read as images' in message
    write_masks(tmp_path)
    (tmp_path / 'img_dir/val/2.jpg').write_text('hello')
    message = errors(mask_config(tmp_path))
    assert 'img_dir/val/2.jpg) cannot be read' in message


def test_error_in_any_step_names_the_file(tmp_path):
    write_masks(tmp_path)
    cfg = mask_config(tmp_path)
    crop = dict(type='Resize', scale=(0, 0))
    cfg.train_dataloader.dataset.pipeline.insert(2, crop)
    message = errors(cfg)
    assert 'Resize failed on image' in message
    assert 'img_dir/train/0.jpg' in message
    assert NAMES[0] not in message
