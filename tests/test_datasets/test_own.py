"""``--data``: layouts are found, configs follow, faults are named."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from own_folders import (
    NAMES,
    coco_content,
    write_classes,
    write_coco,
    write_image,
    write_mask,
    write_pairs,
)
from torch.testing import assert_close

from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import (
    LOADERS,
    ConfigError,
    dataset_dicts,
    walk,
)
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError, apply_own

DET = 'mmefficientmod::det/mask_rcnn_efficientmod_xxs_fpn_1x_coco.py'
BOXES = 'mmefficientmod::det/retinanet_efficientmod_s_fpn_1x_coco.py'
SEG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
CLS = 'mmefficientmod::cls/efficientmod_xxs_in1k.py'


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def printed(monkeypatch):
    """The lines that say what was understood."""
    lines = []
    monkeypatch.setattr(
        'mmefficientmod.datasets.own.apply.print_log',
        lambda line, logger: lines.append(line),
    )
    return lines


def apply(config, folder='mine', trains=True):
    cfg = load_config(config)
    import_toolbox(cfg.default_scope)
    apply_own(cfg, folder, trains)
    return cfg


def build(cfg, loader):
    """The data set of a loader; detectors keep images without objects."""
    (dataset,) = dataset_dicts(cfg, loader)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(
            {**dataset, 'filter_cfg': None}
            if cfg.default_scope == 'mmdet'
            else dataset
        )


def sizes(cfg):
    """Number of images of each loader, each of which exists."""
    counts = []
    for loader in LOADERS:
        dataset = build(cfg, loader)
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            assert Path(info['img_path']).is_file()
            assert Path(info.get('seg_map_path') or info['img_path']).is_file()
        counts.append(len(dataset))
    return tuple(counts)


def labels_of(cfg, loader='train_dataloader'):
    """Labels of the first sample, as the pipeline loads them."""
    dataset = build(cfg, loader)
    sample = dataset.get_data_info(0)
    for step in dataset.pipeline.transforms:
        if type(step).__name__.startswith('Load'):
            sample = step(sample)
    return sorted(np.unique(sample['gt_seg_map']).tolist())


def coco_as(layout):
    """A folder in the layout of COCO or of an annotation tool.

    Returns:
        Number of training, validation and test images.
    """
    names = [f'{i}.jpg' for i in range(5)]
    if layout == 'coco':
        for split, count in dict(train=3, val=2).items():
            content = coco_content(names[:count], first_id=1)
            path = f'mine/annotations/instances_{split}2017.json'
            write_coco(path, content, f'mine/{split}2017')
        keypoints = {**content, 'categories': [dict(keypoints=[])]}
        path = 'mine/annotations/person_keypoints_{}2017.json'
        write_coco(path.format('train'), keypoints)
        captions = dict(images=[], annotations=[dict(caption='a')])
        write_coco('mine/annotations/captions_train2017.json', captions)
        unlabelled = dict(content, annotations=[])
        write_coco('mine/annotations/image_info_test2017.json', unlabelled)
        return 3, 2, 2
    if layout == 'roboflow':
        for split, count in dict(train=3, valid=2, test=1).items():
            content = coco_content(names[:count], ('pets', *NAMES))
            del content['annotations'][::3]  # those of the group
            for category in content['categories'][1:]:
                category['supercategory'] = 'pets'
            path = f'mine/{split}/_annotations.coco.json'
            write_coco(path, content, f'mine/{split}')
        return 3, 2, 1
    if layout == 'cvat':
        path = 'mine/annotations/instances_default.json'
        content = coco_content(names, first_id=1)
        write_coco(path, content, 'mine/images/default')
        return 4, 1, 1
    if layout == 'label studio':
        content = coco_content(names)
        for image in content['images']:
            write_image(f'mine/images/{image["file_name"]}')
            image['file_name'] = f'images\\{image["file_name"]}'
        write_coco('mine/result.json', content)
        return 4, 1, 1
    assert layout == 'label studio server'
    content = coco_content(names)
    for image in content['images']:
        write_image(f'mine/images/{image["file_name"]}')
        image['file_name'] = f'..\\..\\media\\upload\\4\\{image["file_name"]}'
    write_coco('mine/result.json', content)
    return 4, 1, 1


@pytest.mark.parametrize(
    'layout',
    ['coco', 'roboflow', 'cvat', 'label studio', 'label studio server'],
)
def test_coco_files_are_found_with_their_images(layout, printed):
    expected = coco_as(layout)
    cfg = apply(DET)
    assert sizes(cfg) == expected
    for loader in LOADERS:
        dataset = build(cfg, loader)
        assert dataset.metainfo['classes'] == NAMES
        found = [
            x['bbox_label'] for x in dataset.get_data_info(0)['instances']
        ]
        assert found == [0, 1]
    roi_head = cfg.model.roi_head
    assert (
        roi_head.bbox_head.num_classes == roi_head.mask_head.num_classes == 2
    )
    assert cfg.val_evaluator.ann_file == cfg.val_dataloader.dataset.ann_file
    assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file
    assert cfg.val_evaluator.metric == ['bbox', 'segm']
    assert printed[0] == '--data mine: COCO files'
    assert 'classes: 2, cat, dog' in ' '.join(printed)
    no_val = any('one image of 5 is for validation' in x for x in printed)
    assert no_val == (expected == (4, 1, 1))


def test_written_files_in_the_folder_itself_are_no_data(printed, monkeypatch):
    coco_as('cvat')
    write_pairs(LAYOUTS['no splits'], labels=(0, 255))
    monkeypatch.chdir('mine')
    for _ in range(2):
        assert sizes(apply(DET, '.')) == (4, 1, 1)
        assert sizes(apply(SEG, '.')) == (2, 1, 1)
    assert Path('data/own').is_dir()


def test_labels_of_all_splits_follow_the_order_of_the_training(printed):
    """CocoDataset numbers the classes in the order of each file."""
    write_coco('mine/train.json', coco_content(['0.jpg']), 'mine/images')
    other = coco_content(['1.jpg'], NAMES[::-1])
    write_coco('mine/val.json', other, 'mine/images')
    write_coco(
        'mine/test.json', coco_content(['2.jpg'], ('dog',)), 'mine/images'
    )
    cfg = apply(DET)
    boxes = {
        loader: {
            x['bbox'][0]: x['bbox_label']
            for x in build(cfg, loader).get_data_info(0)['instances']
        }
        for loader in LOADERS
    }
    assert boxes['train_dataloader'] == {4: 0, 24: 1}
    assert boxes['val_dataloader'] == {4: 1, 24: 0}
    assert boxes['test_dataloader'] == {4: 1}


def test_written_files_follow_the_data(printed):
    coco_as('cvat')
    first = apply(DET).train_dataloader.dataset.ann_file
    assert apply(DET).train_dataloader.dataset.ann_file == first
    names = [f'{i}.jpg' for i in range(5)]
    content = coco_content(names, ('cat', 'dog', 'cow'))
    path = 'mine/annotations/instances_default.json'
    write_coco(path, content, 'mine/images/default')
    assert apply(DET).train_dataloader.dataset.ann_file != first


LAYOUTS = {
    'ade20k': [
        ('mine/images/training/{}.jpg', 'mine/annotations/training/{}.png'),
        ('mine/images/validation/{}.jpg',
         'mine/annotations/validation/{}.png'),
    ],
    'mmseg': [
        ('mine/img_dir/train/{}.jpg', 'mine/ann_dir/train/{}.png'),
        ('mine/img_dir/val/{}.jpg', 'mine/ann_dir/val/{}.png'),
    ],
    'splits outside': [
        ('mine/train/images/a/{}.JPG', 'mine/train/masks/a/{}.png'),
        ('mine/train/images/b/{}.png', 'mine/train/masks/b/{}.png'),
        ('mine/valid/images/{}.jpg', 'mine/valid/masks/{}.png'),
    ],
    'segnet': [
        ('mine/train/{}.png', 'mine/trainannot/{}.png'),
        ('mine/val/{}.png', 'mine/valannot/{}.png'),
        ('mine/test/{}.png', 'mine/testannot/{}.png'),
    ],
    'roboflow': [
        ('mine/train/{}.jpg', 'mine/train/{}_mask.png'),
        ('mine/test/{}.jpg', 'mine/test/{}_mask.png'),
    ],
    'cityscapes': [
        ('mine/leftImg8bit/train/x/{}_leftImg8bit.png',
         'mine/gtFine/train/x/{}_gtFine_labelTrainIds.png'),
        ('mine/leftImg8bit/val/x/{}_leftImg8bit.png',
         'mine/gtFine/val/x/{}_gtFine_labelTrainIds.png'),
    ],
    'labelme2voc': [
        ('mine/JPEGImages/{}.jpg', 'mine/SegmentationClassPNG/{}.png'),
        ('mine/SegmentationClassVisualization/{}.jpg',
         'mine/SegmentationObjectPNG/{}.png'),
    ],
    'no splits': [('mine/images/{}.jpg', 'mine/masks/{}.png')],
}  # fmt: skip


@pytest.mark.parametrize(
    ('layout', 'expected'),
    [
        ('ade20k', (3, 3, 3)),
        ('mmseg', (3, 3, 3)),
        ('splits outside', (6, 3, 3)),
        ('segnet', (3, 3, 3)),
        ('roboflow', (3, 3, 3)),
        ('cityscapes', (3, 3, 3)),
        ('labelme2voc', (2, 1, 1)),
        ('no splits', (2, 1, 1)),
    ],
)
def test_images_and_masks_are_paired(layout, expected, printed):
    write_pairs(LAYOUTS[layout])
    write_image('mine/images/training/alone.jpg')
    cfg = apply(SEG)
    assert sizes(cfg) == expected
    for loader in LOADERS:
        dataset = build(cfg, loader)
        pairs = [dataset.get_data_info(i) for i in range(len(dataset))]
        for pair in pairs:
            image, mask = (
                Path(pair[key]) for key in ('img_path', 'seg_map_path')
            )
            assert mask.stem.startswith(image.stem.split('_')[0])
            assert cv2.imread(str(mask)) is not None
        assert dataset.metainfo['classes'] == ('class 0', 'class 1', 'class 2')
        assert len(dataset.metainfo['palette']) == 3
    assert cfg.model.decode_head.num_classes == 3
    assert labels_of(cfg) == [0, 1, 2]
    assert '1 images have no mask' in ' '.join(printed)


@pytest.mark.parametrize(
    ('labels', 'classes'),
    [
        ((0, 3, 2, 21), ('building', 'sky', 'car')),
        ((0, 1, 2), ('class 0', 'class 1', 'class 2')),
        ((0, 50, 100, 150), ('class 0', 'class 50', 'class 100', 'class 150')),
    ],
)
def test_labels_of_ade20k_are_named(labels, classes, printed):
    write_pairs(LAYOUTS['ade20k'], labels=labels)
    cfg = apply(SEG)
    dataset = build(cfg, 'train_dataloader')
    assert dataset.metainfo['classes'] == classes
    assert cfg.model.decode_head.num_classes == len(classes)
    is_ade = 'building' in classes
    assert labels_of(cfg) == [*range(len(classes)), *[255] * is_ade]
    assert ("taken for ADE20K's" in ' '.join(printed)) == is_ade


def test_all_labels_of_ade20k_stay_as_they_are(printed):
    write_pairs(LAYOUTS['ade20k'], labels=tuple(range(64)))
    for number, first in enumerate((60, 87)):
        for split in ('training', 'validation'):
            write_mask(
                f'mine/annotations/{split}/{number}.png',
                range(first, first + 64),
            )
    cfg = apply(SEG)
    names = build(cfg, 'train_dataloader').metainfo['classes']
    assert (len(names), names[0], names[149]) == (150, 'wall', 'flag')
    assert labels_of(cfg) == [*range(59, 123)]  # 60 to 123 in the file
    assert not list(Path('data/own').rglob('*.png'))


def test_lists_of_files_divide_masks(printed):
    write_pairs(LAYOUTS['no splits'], count=5)
    folder = Path('mine/ImageSets/Segmentation')
    folder.mkdir(parents=True)
    (folder / 'train.txt').write_text('0\n1\n2\n')
    (folder / 'val.txt').write_text('images/3.jpg masks/3.png\n')
    assert sizes(apply(SEG)) == (3, 1, 1)
    assert '1 images are in no list of train.txt, val.txt' in ' '.join(printed)


PALETTE = [(0, 0, 0), (250, 50, 83), (51, 221, 255)]  # of CVAT


def write_cvat_masks(**options):
    places = [('mine/JPEGImages/{}.jpg', 'mine/SegmentationClass/{}.png')]
    write_pairs(places, colours=PALETTE, **options)
    write_pairs([('mine/JPEGImages/{}.jpg', 'mine/SegmentationObject/{}.png')])
    lines = ['# label:color_rgb:parts:actions']
    for name, colour in zip(('background', *NAMES), PALETTE, strict=True):
        lines.append(f'{name}:{",".join(map(str, colour))}::')
    Path('mine/labelmap.txt').write_text('\n'.join(lines))
    Path('mine/ImageSets/Segmentation').mkdir(parents=True)
    Path('mine/ImageSets/Segmentation/default.txt').write_text('0\n1\n2\n')


def test_masks_in_colour_are_read_by_the_label_map(printed):
    write_cvat_masks()
    cfg = apply(SEG)
    assert sizes(cfg) == (2, 1, 1)
    assert labels_of(cfg) == [0, 1, 2]
    meta = build(cfg, 'val_dataloader').metainfo
    assert meta['classes'] == ('background', *NAMES)
    assert list(map(tuple, meta['palette'])) == PALETTE
    assert 'were converted by labelmap.txt' in ' '.join(printed)

    mask = np.array(PALETTE, np.uint8)[np.zeros((48, 64), int)]
    mask[0, 0] = 224, 224, 192  # the borders of Pascal VOC
    cv2.imwrite('mine/SegmentationClass/0.png', mask[..., ::-1])
    assert labels_of(apply(SEG)) == [0, 255]
    mask[0, 0] = 1, 2, 3
    cv2.imwrite('mine/SegmentationClass/0.png', mask[..., ::-1])
    with pytest.raises(DataError, match=r'0\.png has the colour 1,2,3, which'):
        apply(SEG)


@pytest.mark.parametrize(
    ('labels', 'file', 'text', 'classes', 'loaded', 'said'),
    [
        ((0, 1, 2), 'classes.txt', 'a\nb\nc\n', 'abc', [0, 1, 2],
         'names from classes.txt'),
        ((0, 1, 2), 'classes.txt', 'a\nb\n', 'ab', [0, 1, 255],
         'label 0 is ignored: label 1 is a, label 2 is b'),
        ((0, 1, 2), 'class_names.txt', '_background_\na\nb\n',
         ('_background_', 'a', 'b'), [0, 1, 2], 'from class_names.txt'),
        ((0, 1, 255), 'labels.txt', 'a\nb\nc\n', 'abc', [0, 1, 255],
         'pixels of label 255 are ignored'),
        ((0, 255), None, '', ('class 0', 'class 1'), [0, 1],
         '255 is label 1'),
        ((0, 255), 'classes.txt', 'crack', ('background', 'crack'), [0, 1],
         '255 is label 1'),
        ((0, 7, 40), None, '', ('class 0', 'class 7', 'class 40'), [0, 1, 2],
         'the labels 0, 7, 40 were numbered anew'),
        ((0, 7, 40), 'classes.csv', 'label,name\n7, road\n40, car',
         ('road', 'car'), [0, 1, 255], 'labels that are ignored: 0'),
        ((0, 1), '_classes.csv', 'Pixel Value, Class\n0, a\n1, b', 'ab',
         [0, 1], 'names from _classes.csv'),
    ],
)  # fmt: skip
def test_names_of_classes_fit_the_labels(
    labels, file, text, classes, loaded, said, printed
):
    write_pairs(LAYOUTS['mmseg'], labels=labels)
    if file:
        Path('mine', file).write_text(text)
    cfg = apply(SEG)
    assert build(cfg, 'val_dataloader').metainfo['classes'] == tuple(classes)
    assert cfg.model.decode_head.num_classes == len(classes)
    assert labels_of(cfg) == labels_of(cfg, 'val_dataloader') == loaded
    assert said in ' '.join(printed)


@pytest.mark.parametrize(
    ('folders', 'expected', 'classes'),
    [
        (('train/cat', 'train/dog', 'val/cat', 'val/dog'), (6, 6, 6), NAMES),
        (('train/cat', 'train/dog', 'valid/cat', 'valid/dog', 'test/cat',
          'test/dog'), (6, 6, 6), NAMES),
        (('cat', 'a dog'), (4, 2, 2), ('a dog', 'cat')),
        (('train/cat', 'train/dog'), (4, 2, 2), NAMES),
        (('train', 'bus'), (4, 2, 2), ('bus', 'train')),
    ],
)  # fmt: skip
def test_class_folders_are_found(folders, expected, classes, printed):
    write_classes(*(f'mine/{folder}' for folder in folders))
    cfg = apply(CLS)
    assert sizes(cfg) == expected
    for loader in LOADERS:
        dataset = build(cfg, loader)
        assert tuple(dataset.metainfo['classes']) == classes
        assert sorted({*dataset.get_gt_labels()}) == [0, 1]
    assert cfg.model.head.num_classes == 2
    assert cfg.val_evaluator.topk == [1]


def everything(folder):
    """All kinds of data in one folder, with three classes."""
    names = ('a', 'b', 'c')
    for split in 'train', 'val':
        content = coco_content(['0.jpg'], names)
        write_coco(f'{folder}/{split}.json', content, f'{folder}/img/{split}')
    write_mask(f'{folder}/ann/train/0.png')
    write_mask(f'{folder}/ann/val/0.png')
    for name in names:
        write_classes(f'{folder}/train/{name}', f'{folder}/val/{name}')
    return folder


@pytest.mark.parametrize(
    ('config', 'heads', 'weights'),
    [
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 4, []),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', 1, []),
        ('mmdet::yolact/yolact_r50_1xb8-55e_coco.py', 2, []),
        ('mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', 3, []),
        ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 2,
         [[1, 1, 1, 0.1]]),
        ('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 1, []),
        ('mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py', 2, []),
        ('mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py', 2, []),
        ('mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_'
         'lvis-v1.py', 3, []),
        ('mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py', 5,
         []),
        ('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', 1,
         [[1, 1, 1, 0.1]]),
        ('mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py', 2, []),
        ('mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py', 5,
         []),
        ('mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-20k_voc12aug-512x512.py', 2,
         []),
        ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 1, []),
        ('mmpretrain::deit/deit-base-distilled_16xb64_in1k.py', 1, []),
    ],
)  # fmt: skip
def test_every_head_follows_the_classes(config, heads, weights, printed):
    cfg = apply(config, everything('mine'))
    counts = [
        node[key]
        for node in walk(cfg.model)
        for key in ('num_classes', 'num_things_classes')
        if key in node and node.get('type') != 'RPNHead'
    ]
    assert set(counts) == {3}
    assert len(counts) >= heads
    found = [node.get('class_weight') for node in walk(cfg.model)]
    assert [x for x in found if isinstance(x, list)] == weights
    for evaluator in 'val_evaluator', 'test_evaluator':
        for node in walk(cfg[evaluator]):
            assert node['type'] in ('CocoMetric', 'IoUMetric', 'Accuracy')
    assert {len(build(cfg, loader)) for loader in LOADERS[1:]} <= {1, 9}


def test_text_encoder_reads_the_names_of_the_classes(printed):
    name = 'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py'
    encoder = apply(name, everything('mine')).model.text_encoder
    assert encoder.vocabulary == ['class 0', 'class 1', 'class 2']
    assert encoder.dataset_name is None


def test_head_of_edges_and_loss_weights_of_classes(printed):
    name = 'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py'
    heads = apply(name, everything('mine')).model.auxiliary_head
    assert [head.num_classes for head in heads] == [3, 3, 2]
    name = 'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-'
    cfg = apply(f'{name}1024x1024.py')
    assert not any('class_weight' in node for node in walk(cfg.model))


def test_splits_that_are_missing(printed):
    write_classes('mine/test/cat', 'mine/test/dog')
    with pytest.raises(DataError, match='no training data, only test; a file'):
        apply(CLS)
    cfg = apply(CLS, trains=False)
    assert len(build(cfg, 'test_dataloader')) == 6
    assert cfg.train_dataloader is cfg.train_cfg is cfg.optim_wrapper is None
    write_classes('mine/train/cat', 'mine/train/dog')
    apply(CLS)
    assert 'no validation data: the test data is used' in ' '.join(printed)


def bad_folder(kind):
    """A folder with a fault, and the config for it."""
    if kind == 'missing':
        return DET
    Path('mine').mkdir()
    if kind == 'boxes for a segmentor':
        coco_as('coco')
        return SEG
    if kind == 'boxes without masks':
        content = coco_content(['0.jpg', '1.jpg'], masks=False)
        write_coco('mine/a.json', content, 'mine')
        return DET
    if kind == 'several files':
        for name in 'a', 'b':
            write_coco(f'mine/{name}.json', coco_content(['0.jpg']), 'mine')
        return DET
    if kind == 'images elsewhere':
        write_coco('mine/a.json', coco_content(['0.jpg', '1.jpg']))
        return DET
    if kind == 'key missing':
        content = coco_content(['0.jpg', '1.jpg'])
        del content['images'][1]['file_name']
        write_coco('mine/a.json', content)
        return DET
    if kind == 'other categories':
        write_coco('mine/train.json', coco_content(['0.jpg']), 'mine')
        write_coco('mine/val.json', coco_content(['0.jpg'], ('cow',)), 'mine')
        return DET
    if kind == 'colours':
        write_pairs(LAYOUTS['mmseg'], colours=PALETTE)
    if kind == 'jpeg':
        write_pairs([('mine/images/{}.jpg', 'mine/masks/{}.jpg')])
    if kind == 'too few names':
        write_pairs(LAYOUTS['mmseg'], labels=(0, 1, 2, 3, 4, 5))
        Path('mine/classes.txt').write_text('a\nb\nc\n')
    if kind == 'twice':
        write_pairs(LAYOUTS['mmseg'])
        Path('mine/classes.txt').write_text('a\nb\na\n')
    if kind == 'all ignored':
        write_pairs(LAYOUTS['mmseg'], labels=(255,))
    if kind == 'binary':
        write_pairs(LAYOUTS['mmseg'], labels=(0, 255))
        Path('mine/classes.txt').write_text('a\nb\nc\n')
    if kind == 'archive':
        Path('mine').rmdir()
        Path('mine').touch()
    if kind == 'not binary':
        write_pairs(LAYOUTS['no splits'], 5, labels=(0, 255))
        write_mask('mine/masks/1.png', (0, 254, 255))
    if kind == 'panoptic':
        return 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
    if kind == 'self-supervised':
        return 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'
    if kind == 'semi-supervised':
        return (
            'mmdet::soft_teacher/'
            'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
        )
    return SEG


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('missing', '--data mine: there is no such folder'),
        ('boxes for a segmentor', 'needs images and masks in folders .* has 5 '
         'images; at its top: annotations/, train2017/, val2017/'),
        ('boxes without masks', 'has boxes without masks, and the config pre'),
        ('several files', 'several COCO files for all splits: a.json, b'),
        ('images elsewhere', '2 of the 2 images .*a.json names are not'),
        ('key missing', "a.json: 1 of 2 images have no 'file_name'"),
        ('other categories', r'val.json has objects of cow, and the training'),
        ('colours', r'is in colour, and .*mine has no labelmap.txt'),
        ('all ignored', 'masks have no label but 255, which is ignored'),
        ('binary', '0 and 255 alone, and .*classes.txt has 3 names'),
        ('archive', '--data mine is a file; unpack it if it is an archive'),
        ('jpeg', r'0.jpg is a JPEG, whose compression'),
        ('too few names', r'has the label 5, and .*classes.txt has 3 names'),
        ('twice', r"classes.txt has the name 'a' more than once"),
        ('not binary', r'1.png has the value 254, and the other masks have 0'),
        ('panoptic', 'cannot replace .* have LoadPanopticAnnotations'),
        ('self-supervised', 'does not predict one class for each image'),
        ('semi-supervised', 'cannot replace .*: its pipelines have LoadEmpty'),
    ],
)  # fmt: skip
def test_folder_that_does_not_fit_is_refused(
    kind, message, printed, monkeypatch
):
    # Not all masks are looked at.
    monkeypatch.setattr('mmefficientmod.datasets.own.masks.SAMPLE', 2)
    config = bad_folder(kind)
    with pytest.raises((ConfigError, DataError), match=message) as error:
        apply(config)
    assert '\n' not in str(error.value)


def write_yolo():
    names = dict(names=dict(enumerate(NAMES)))
    for split, count in dict(train=3, valid=2).items():
        for i in range(count):
            write_image(f'mine/{split}/images/{split}{i}.jpg')
            path = Path(f'mine/{split}/labels/{split}{i}.txt')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('1 0.5 0.5 0.25 0.5\n')
    Path('mine/data.yaml').write_text(json.dumps(names))


def write_voc():
    for i in range(3):
        write_image(f'mine/JPEGImages/{i}.jpg')
        path = Path(f'mine/Annotations/{i}.xml')
        path.parent.mkdir(exist_ok=True)
        objects = ''.join(
            f'<object><name>{name}</name><bndbox><xmin>25</xmin><ymin>13'
            '</ymin><xmax>40</xmax><ymax>36</ymax></bndbox></object>'
            for name in NAMES
        )
        path.write_text(f'<annotation>{objects}</annotation>')
    folder = Path('mine/ImageSets/Main')
    folder.mkdir(parents=True)
    (folder / 'train.txt').write_text('0\n1\n')
    (folder / 'val.txt').write_text('2\n')


def write_labelme():
    for i in range(3):
        write_image(f'mine/{i}.jpg')
        points = [[24, 12], [40, 12], [40, 36], [24, 36]]
        shape = dict(label='dog', points=points, shape_type='polygon')
        content = dict(
            imagePath=f'{i}.jpg', imageHeight=48, imageWidth=64, shapes=[shape]
        )
        Path(f'mine/{i}.json').write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('write', 'config', 'expected', 'classes', 'x'),
    [
        (write_yolo, BOXES, (3, 2, 2), NAMES, 24),
        (write_voc, BOXES, (2, 1, 1), NAMES, 24),
        (write_labelme, DET, (2, 1, 1), ('dog',), 24),
    ],
)
def test_other_formats_are_converted(
    write, config, expected, classes, x, printed
):
    pytest.importorskip('supervision')
    write()
    cfg = apply(config)
    assert sizes(cfg) == expected
    dataset = build(cfg, 'val_dataloader')
    assert dataset.metainfo['classes'] == classes
    (box, *_), label = (
        dataset.get_data_info(0)['instances'][-1][key]
        for key in ('bbox', 'bbox_label')
    )
    assert box == pytest.approx(x, abs=1)
    assert classes[label] == 'dog'
    assert 'converted by supervision' in ' '.join(printed)


@pytest.mark.parametrize('write', [write_yolo, write_voc, write_labelme])
def test_library_that_is_missing_is_named(write, monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    write()
    with pytest.raises(DataError, match='not installed: pip install'):
        apply(BOXES)


# A step and a validation of few small images.
SHORT = [
    'train_cfg.max_iters=1',
    'train_dataloader.batch_size=2',
    'scale=64,48',
    'randomness.seed=0',
    *(
        f'{name}_dataloader.{option}'
        for name in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ),
]


def test_segmentor_is_trained_tested_and_fine_tuned_on_other_classes(
    tool, capsys
):
    write_pairs(LAYOUTS['mmseg'], count=2)
    Path('mine/classes.txt').write_text('road\ncar\nsky\n')
    options = ['--cfg-options', *SHORT, 'crop_size=32']
    argv = [SEG, '--data', 'mine', '--work-dir', 'first', *options]
    tool('train').main(argv)
    printed = capsys.readouterr().out
    assert 'classes: 3, road, car, sky (names from classes.txt)' in printed
    checkpoint = 'first/iter_1.pth'
    metrics = tool('test').main(
        [SEG, checkpoint, '--data', 'mine', '--work-dir', 'test', *options]
    )
    assert 0 <= metrics['mIoU'] <= 100
    image = 'mine/img_dir/val/0.jpg'
    drawn = tool('predict').main([SEG, checkpoint, image, '--data', 'mine'])
    assert len(drawn) == 1

    Path('mine/classes.txt').write_text('car\nroad\nsky\n')
    # In a folder that stays: MMEngine names runs by the second, and those of
    # the same name share one visualizer, which writes into its first folder.
    with pytest.raises(CheckpointError, match='the data has car, road, sky'):
        tool('test').main(
            [SEG, checkpoint, '--data', 'mine', '--work-dir', 'test', *options]
        )

    write_pairs([(f'two/{x}', f'two/{y}') for x, y in LAYOUTS['no splits']],
                labels=(0, 1))  # fmt: skip
    argv = [SEG, '--data', 'two/mine', '--work-dir', 'second', *options]
    runner = tool('train').main(
        [*argv, f'load_from={checkpoint}', 'optim_wrapper.optimizer.lr=0']
    )
    printed = capsys.readouterr().out
    assert 'trained on other classes (road, car, sky)' in printed
    assert 'start from new weights: decode_head.conv_seg\n' in printed
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    after = runner.model.state_dict()
    assert after['decode_head.conv_seg.weight'].shape[0] == 2
    for name, tensor in before.items():
        if not name.startswith('decode_head.conv_seg') and (
            'running' not in name and 'num_batches' not in name
        ):
            assert_close(after[name], tensor)


def test_detector_is_trained_and_tested_on_own_data(tool, capsys):
    coco_as('label studio')
    options = ['--cfg-options', *SHORT, 'model.test_cfg.score_thr=0.0']
    argv = [BOXES, '--backbone', 'efficientmod_xxs', '--data', 'mine']
    runner = tool('train').main([*argv, '--work-dir', 'first', *options])
    assert runner.model.bbox_head.retina_cls.out_channels == 9 * 2
    assert 'coco/bbox_mAP' in capsys.readouterr().out
    content = torch.load('first/iter_1.pth', weights_only=False)
    assert content['meta']['dataset_meta']['classes'] == NAMES
