"""Predictions on files, by tiny models of the three tasks."""

import csv
import gc
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import TINY
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.apis import MMSegInferencer
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmefficientmod.apis.coco_results import Detections
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.apis.inputs import Source, find_sources
from mmefficientmod.apis.outputs import (
    Drawings,
    Prediction,
    by_stem,
    output_names,
)
from mmefficientmod.apis.predicting import predict_files
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model
from mmefficientmod.datasets import DataError

NAMES = ('cat', 'dog', 'bird')
PALETTE = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
BACKBONE = dict(type='EfficientMod', arch=TINY)
NORM = dict(mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True)
LOSS = dict(type='CrossEntropyLoss')
MODELS = {
    'mmseg': dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', **NORM),
        backbone=BACKBONE,
        decode_head=dict(
            type='FCNHead', in_channels=8, in_index=0, channels=8,
            num_convs=1, num_classes=3, loss_decode=LOSS,
        ),
        test_cfg=dict(mode='whole'),
    ),
    'mmdet': dict(
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor', pad_size_divisor=32, **NORM
        ),
        backbone=BACKBONE,
        neck=dict(
            type='FPN', in_channels=[*TINY['dims']], out_channels=8, num_outs=5
        ),
        bbox_head=dict(
            type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=4,
                scales_per_octave=1, ratios=[1.0], strides=[4, 8, 16, 32, 64],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        ),
        test_cfg=dict(
            nms_pre=50, score_thr=0.0, max_per_img=4,
            nms=dict(type='nms', iou_threshold=0.5),
        ),
    ),
    'mmpretrain': dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            mean=NORM['mean'], std=NORM['std'], to_rgb=True
        ),
        backbone=dict(BACKBONE, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=32),
    ),
}  # fmt: skip
STEPS = {
    'mmseg': [dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    'mmdet': [
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ],
    'mmpretrain': [dict(type='Resize', scale=32), dict(type='PackInputs')],
}
DATASETS = {
    'mmseg': 'BaseSegDataset',
    'mmdet': 'CocoDataset',
    'mmpretrain': 'CustomDataset',
}


def config(scope, **changes):
    dataset = dict(
        type=DATASETS[scope],
        metainfo=dict(classes=NAMES, palette=PALETTE),
        pipeline=[dict(type='LoadImageFromFile'), *STEPS[scope]],
    )
    content = dict(
        default_scope=scope,
        model=MODELS[scope],
        test_dataloader=dict(dataset=dataset),
    )
    return Config(content | changes)


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Files of random weights alone, without names of classes."""
    folder = tmp_path_factory.mktemp('weights')
    paths = {}
    for scope in MODELS:
        torch.manual_seed(0)
        paths[scope] = str(folder / f'{scope}.pth')
        model = build_model(config(scope))
        torch.save(model.state_dict(), paths[scope])
    return paths


@pytest.fixture(scope='module')
def inferencers(checkpoints):
    return {
        scope: build_inferencer(config(scope), path, 'cpu')
        for scope, path in checkpoints.items()
    }


@pytest.fixture(params=['mmseg', 'mmdet', 'mmpretrain'])
def inferencer(request, inferencers):
    init_default_scope(request.param)
    return inferencers[request.param]


@pytest.fixture
def segmentor(inferencers):
    init_default_scope('mmseg')
    return inferencers['mmseg']


@pytest.fixture
def detector(inferencers):
    init_default_scope('mmdet')
    return inferencers['mmdet']


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path, size=(48, 40), seed=0, mode='RGB', **options):
    """Write an image of noise; ``size`` is width and height."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return str(path)


def predict(*args, **kwargs):
    return [path.as_posix() for path in predict_files(*args, **kwargs)]


def attempt(*args, **kwargs):
    """The paths that are written, and the message of the error at the end."""
    paths = []
    try:
        for path in predict_files(*args, **kwargs):
            paths.append(path.as_posix())
    except DataError as error:
        return paths, str(error)
    return paths, ''


def test_outputs_have_the_tree_of_the_inputs(segmentor):
    for i, path in enumerate(['x/photo.jpg', 'y/photo.jpg', 'y/photo.png']):
        save(f'in/{path}', seed=i)
    drawn = [f'out/drawings/{x}/photo.jpg' for x in 'xy']
    drawn.append('out/drawings/y/photo.png')
    assert sorted(predict(segmentor, ['in'], 'out')) == drawn
    assert len({Path(path).read_bytes() for path in drawn}) == 3
    labels = predict(segmentor, ['in'], 'out', 'png')
    # Two labels of the same stem have the whole names.
    assert [path.removeprefix('out/labels/') for path in labels] == [
        'x/photo.png',
        'y/photo.jpg.png',
        'y/photo.png.png',
    ]


def test_drawings_in_the_input_folder_are_no_inputs(segmentor):
    save('a.jpg')
    assert predict(segmentor, ['.'], '.') == ['drawings/a.jpg']
    assert predict(segmentor, ['.'], '.') == ['drawings/a.jpg']
    before = Path('drawings/a.jpg').read_bytes()
    with pytest.raises(ConfigError, match='would replace an input'):
        predict(segmentor, ['drawings/a.jpg'], '.')
    assert Path('drawings/a.jpg').read_bytes() == before


def test_label_map_has_the_labels_and_the_palette(segmentor):
    path = save('a.jpg')
    (written,) = predict(segmentor, [path], save='png')
    image = Image.open(written)
    assert image.mode == 'P'
    assert image.getpalette()[:9] == [
        value for rgb in PALETTE for value in rgb
    ]
    wanted = segmentor(path, return_datasamples=True).pred_sem_seg.data[0]
    np.testing.assert_array_equal(np.array(image), wanted.numpy())


def test_detections_are_results_that_pycocotools_reads(detector):
    paths = [save(f'{i}.jpg', seed=i) for i in range(2)]
    written = predict(detector, paths, save='json')
    assert written == ['outputs/images.json', 'outputs/detections.json']
    truth = COCO(written[0])
    assert [truth.imgs[i]['file_name'] for i in (1, 2)] == paths
    assert truth.imgs[1]['width'] == 48
    assert [truth.cats[i]['name'] for i in (1, 2, 3)] == list(NAMES)
    found = truth.loadRes(written[1])
    wanted = detector(paths, return_datasamples=True)['predictions']
    for i, sample in enumerate(wanted, start=1):
        objects = found.imgToAnns[i]
        instances = sample.pred_instances
        assert len(objects) == len(instances) == 4
        boxes = np.array([x['bbox'] for x in objects])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, instances.bboxes, atol=2e-3)
        labels = [x['category_id'] - 1 for x in objects]
        assert labels == instances.labels.tolist()
    scores = torch.cat([x.pred_instances.scores for x in wanted])
    threshold = scores.sort().values[5].item()
    predict(detector, paths, save='json', score_thr=threshold)
    kept = json.loads(Path(written[1]).read_text())
    assert len(kept) == (scores >= threshold).sum()


def test_masks_and_panoptic_maps_are_in_the_formats_of_coco():
    from mmdet.structures import DetDataSample

    mask = torch.zeros(2, 6, 8, dtype=torch.bool)
    mask[0, 1:3, 2:5] = mask[1, 4:, :] = True
    # A head that predicts masks alone has boxes of zeros.
    objects = InstanceData(
        masks=mask, labels=torch.tensor([2, 0]), scores=torch.rand(2),
        bboxes=torch.zeros(2, 4),
    )  # fmt: skip
    # A cat, number 1, the background of label 2, and pixels without a class.
    panoptic = torch.full((1, 6, 8), 2)
    panoptic[0, :2, :3], panoptic[0, 5] = 1000, 3
    sample = DetDataSample(
        pred_instances=objects, pred_panoptic_seg=PixelData(sem_seg=panoptic)
    )
    source = Source('a.jpg', 'sub/a.jpg')
    writer = Detections(Path('out'), [source], NAMES, things=2)
    picture = np.zeros((6, 8, 3), np.uint8)
    list(writer.write(Prediction(source, None, picture, sample)))
    names = [path.name for path in writer.close()]
    assert names == ['images.json', 'detections.json', 'panoptic.json']
    found = json.loads(Path('out/detections.json').read_text())
    assert [x['bbox'] for x in found] == [[2, 1, 3, 2], [0, 4, 8, 2]]
    for result, wanted in zip(found, mask, strict=True):
        decoded = coco_mask.decode(result['segmentation'])
        np.testing.assert_array_equal(decoded, wanted.numpy())
    content = json.loads(Path('out/panoptic.json').read_text())
    assert [x['isthing'] for x in content['categories']] == [1, 1, 0]
    (annotation,) = content['annotations']
    ids = np.array(Image.open('out/panoptic/' + annotation['file_name']))
    ids = ids.astype(int) @ [1, 256, 256**2]
    stuff, cat = annotation['segments_info']
    assert (cat['category_id'], cat['area'], cat['bbox']) == (
        1,
        6,
        [0, 0, 3, 2],
    )
    assert (stuff['category_id'], stuff['area']) == (3, 40 - 6)
    assert (ids == cat['id']).sum() == 6
    assert (ids == 0).sum() == 8


def test_panoptic_map_without_a_segment_is_drawn_as_the_image(
    detector, monkeypatch
):
    from mmdet.structures import DetDataSample

    path = save('a.png')
    empty = PixelData(sem_seg=torch.full((1, 40, 48), len(NAMES)))
    sample = DetDataSample(pred_panoptic_seg=empty)
    # As Mask2Former predicts where it is sure of nothing.
    monkeypatch.setattr(detector, 'forward', lambda data: [sample])
    drawing, *tables = predict(detector, [path], save='both')
    np.testing.assert_array_equal(cv2.imread(drawing), cv2.imread(path))
    content = json.loads(Path(tables[-1]).read_text())
    assert content['annotations'][0]['segments_info'] == []


def test_scores_are_a_table(inferencers):
    init_default_scope('mmpretrain')
    classifier = inferencers['mmpretrain']
    paths = [save(f'{i}.jpg', seed=i) for i in range(2)]
    (written,) = predict(classifier, paths, save='csv')
    rows = list(csv.DictReader(Path(written).read_text().splitlines()))
    for row, path, wanted in zip(rows, paths, classifier(paths), strict=True):
        assert (row['image'], row['frame']) == (path, '')
        assert (row['label'], row['class']) == (
            str(wanted['pred_label']),
            wanted['pred_class'],
        )
        scores = [float(row[name]) for name in NAMES]
        np.testing.assert_allclose(scores, wanted['pred_scores'], rtol=1e-4)


def test_files_that_cannot_be_read_are_named_and_left_out(segmentor, capsys):
    for i in range(3):
        save(f'in/{i}.jpg')
    Path('in/1.jpg').write_text('no image')
    Path('in/empty.png').touch()
    paths, message = attempt(segmentor, ['in'])
    assert paths == [f'outputs/drawings/{i}.jpg' for i in (0, 2)]
    assert message.startswith('2 of 4 predictions failed, and the others are')
    assert 'in/1.jpg is no image that can be read' in message
    printed = capsys.readouterr().err
    assert 'left out: in/empty.png is no image that can be read' in printed


# What the files of cameras, scanners and drawing programs are like.
ODD = {
    'grey.png': dict(mode='L'),
    'alpha.png': dict(mode='RGBA'),
    'indexed.png': dict(mode='P'),
    'cmyk.jpg': dict(mode='CMYK'),
    'deep.png': {},  # of 16 bits
    'bits.tif': dict(mode='1'),
    'pixel.png': dict(size=(1, 1)),
    'high.jpg': dict(size=(1, 200)),
    'wide.jpg': dict(size=(3000, 3)),
    'фото 图.jpg': {},
    'shouting.JPG': {},
}


def test_odd_images_are_drawn_or_named(inferencer):
    for name, options in ODD.items():
        if name == 'deep.png':
            cv2.imwrite(f'in/{name}', np.full((40, 48), 700, np.uint16))
        else:
            save(f'in/{name}', **options)
    paths, message = attempt(inferencer, ['in'])
    drawn = [Path(path).name for path in paths]
    for name in ODD.keys() - {*drawn}:
        # MMSegmentation cannot draw a single pixel. Scaled to 64 pixels, the
        # narrow ones have less than one pixel on a side.
        width, height = ODD[name]['size']
        if isinstance(inferencer, DetInferencer):
            assert min(width, height) * 128 < max(width, height)
        else:
            assert (type(inferencer), name) == (MMSegInferencer, 'pixel.png')
        assert f'in/{name}, {width}x{height} pixels, cannot be' in message
    for name in drawn:
        shape = cv2.imread(f'outputs/drawings/{name}').shape
        assert shape[1::-1] == ODD[name].get('size', (48, 40)), name


def test_image_is_drawn_and_predicted_as_its_exif_data_turns_it(segmentor):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = save('a.jpg', size=(48, 40), exif=exif)
    drawing, labels = predict(segmentor, [path], save='both')
    assert cv2.imread(drawing).shape == (48, 40, 3)
    assert Image.open(labels).size == (40, 48)


def test_frames_of_a_video_become_a_video(segmentor):
    code = cv2.VideoWriter.fourcc(*'MJPG')
    writer = cv2.VideoWriter('clip.avi', code, 29.97, (48, 40))
    for i in range(3):
        writer.write(np.full((40, 48, 3), 100 * i, np.uint8))
    writer.release()
    save('photo.jpg')
    written = predict(segmentor, ['.'], 'out', 'both', batch_size=2)
    assert [path.removeprefix('out/') for path in written] == [
        'labels/clip.avi/000000.png',
        'labels/clip.avi/000001.png',
        'labels/clip.avi/000002.png',
        'drawings/clip.mp4',
        'drawings/photo.jpg',
        'labels/photo.png',
    ]
    clip = cv2.VideoCapture('out/drawings/clip.mp4')
    assert clip.get(cv2.CAP_PROP_FPS) == pytest.approx(29.97)
    frames = [clip.read()[1] for _ in range(3)]
    assert frames[0].shape == (40, 48, 3)
    assert frames[0].mean() < frames[2].mean()
    assert not clip.read()[0]


@pytest.mark.parametrize('rate', [0.5, 23.976, 65.001, 119.88, 120.003, 999.9])
def test_drawn_video_has_the_rate_of_the_video(rate):
    source = Source('a.mp4', 'a.mp4', 'video')
    image = np.zeros((4, 7, 3), np.uint8)
    drawings = Drawings(Path('out'), [source], lambda p: p.image)
    list(drawings.write(Prediction(source, 0, image, None, rate)))
    (path,) = drawings.finish(source)
    clip = cv2.VideoCapture(str(path))
    assert clip.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-4)
    assert clip.read()[1].shape == (4, 8, 3)  # the codec wants even sizes


def test_every_source_has_a_name_of_its_own():
    names = ['a.jpg', 'a.png', 'a.jpg.png', 'b.jpg', 'c/a.jpg']
    sources = [Source(name, name) for name in names]
    found = output_names(sources, lambda s: by_stem(s, '.png'))
    assert [*found.values()] == [
        'a.jpg_2.png',
        'a.png.png',
        'a.jpg.png',
        'b.png',
        'c/a.png',
    ]


def test_stopped_run_leaves_no_half_files(segmentor):
    code = cv2.VideoWriter.fourcc(*'MJPG')
    writer = cv2.VideoWriter('clip.avi', code, 5, (48, 40))
    for _ in range(3):
        writer.write(np.zeros((40, 48, 3), np.uint8))
    writer.release()
    run = predict_files(segmentor, ['clip.avi'], 'out', 'both')
    assert next(run).name == '000000.png'
    assert len(list(Path('out/drawings').iterdir())) == 1  # a draft
    run.close()
    assert not list(Path('out/drawings').iterdir())


def test_camera_ends_with_ctrl_c_and_its_video_is_whole(
    segmentor, monkeypatch
):
    # A file in the place of a camera: only its kind differs.
    code = cv2.VideoWriter.fourcc(*'MJPG')
    writer = cv2.VideoWriter('clip.avi', code, 5, (48, 40))
    for _ in range(9):
        writer.write(np.zeros((40, 48, 3), np.uint8))
    writer.release()
    (photo,) = find_sources([save('a.jpg', size=(48, 40))])
    camera = Source('clip.avi', 'camera_0', 'camera')
    forward, calls = segmentor.forward, []

    def stopped(data):
        calls.append(data)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(data)

    monkeypatch.setattr(segmentor, 'forward', stopped)
    assert predict(segmentor, [photo, camera], 'out') == [
        'out/drawings/a.jpg',
        'out/drawings/camera_0.mp4',
    ]
    clip = cv2.VideoCapture('out/drawings/camera_0.mp4')
    assert [clip.read()[0] for _ in range(3)] == [True, True, False]


def test_memory_does_not_grow_with_the_number_of_images(inferencer):
    samples = type(inferencer).__module__.partition('.')[0] + '.structures'
    for i in range(6):
        save(f'in/{i}.jpg', seed=i)
    alive = []
    for _ in predict_files(inferencer, ['in']):
        alive.append(
            sum(
                type(x).__module__.startswith(samples)
                for x in gc.get_objects()
            )
        )
    assert len(alive) == 6
    # Those of earlier tests may not be collected yet.
    assert max(alive) <= alive[0]


def test_batches_give_the_predictions_of_single_images(inferencer):
    own = dict(mmseg='png', mmdet='json', mmpretrain='csv')
    kind = own[type(inferencer).__module__.partition('.')[0]]
    for i in range(4):  # the third one has another size
        save(f'in/{i}.jpg', size=(48, 56 if i == 2 else 40), seed=i)
    found = []
    for size in 1, 2:
        written = predict(inferencer, ['in'], f'out{size}', kind, None, size)
        texts = [Path(path).read_bytes() for path in written]
        found.append(dict(zip((p[5:] for p in written), texts, strict=True)))
    assert found[0].keys() == found[1].keys()
    if kind == 'png':
        assert found[0] == found[1]
    if kind == 'csv':
        one, two = (x['scores.csv'].decode().split() for x in found)
        assert [row[:9] for row in one] == [row[:9] for row in two]
    if kind == 'json':
        one, two = (json.loads(x['detections.json']) for x in found)
        for x, y in zip(one, two, strict=True):
            assert x['image_id'] == y['image_id']
            np.testing.assert_allclose(x['bbox'], y['bbox'], atol=0.01)


def test_a_failure_of_one_image_in_a_batch_is_its_own(segmentor, monkeypatch):
    for i in range(3):
        save(f'{i}.jpg', seed=i)
    forward = segmentor.forward

    def refuse(data):
        if any(s.img_path.endswith('1.jpg') for s in data['data_samples']):
            raise RuntimeError('out of memory')
        return forward(data)

    monkeypatch.setattr(segmentor, 'forward', refuse)
    paths, message = attempt(
        segmentor, ['0.jpg', '1.jpg', '2.jpg'], batch_size=3
    )
    assert [Path(path).name for path in paths] == ['0.jpg', '2.jpg']
    assert '1 of 3' in message
    assert '1.jpg, 48x40 pixels, cannot be predicted (Runtime' in message


def test_run_without_any_success_is_given_up(checkpoints, capsys):
    wrong = config('mmseg')
    step = dict(type='Resize', scale=(0, 0))
    wrong.test_dataloader.dataset.pipeline.insert(1, step)
    inferencer = build_inferencer(wrong, checkpoints['mmseg'], 'cpu')
    for i in range(25):
        save(f'in/{i:02}.jpg', size=(4, 4))
    paths, message = attempt(inferencer, ['in'])
    assert not paths
    assert message.startswith('the first 20 predictions failed: in/00.jpg, ')
    assert capsys.readouterr().err.count('left out') == 20


def test_output_that_cannot_be_written_ends_the_run(segmentor):
    path = save('a.jpg')
    Path('file').touch()
    for out in 'file', 'file/sub':
        with pytest.raises(DataError, match='file.* cannot be written: '):
            predict(segmentor, [path], out)
    Path('out/drawings').mkdir(parents=True)
    Path('out/drawings/a.jpg').mkdir()
    with pytest.raises(DataError, match='a.jpg cannot be written: Is a dir'):
        predict(segmentor, [path], 'out')


def test_format_of_another_task_is_refused(inferencer):
    own = dict(mmseg='png', mmdet='json', mmpretrain='csv')
    own = own[type(inferencer).__module__.partition('.')[0]]
    for kind in {'png', 'json', 'csv'} - {own}:
        with pytest.raises(ConfigError, match=f'are written by --save {own}'):
            predict(inferencer, [save('a.jpg')], save=kind)


def drawn_names(inferencer):
    names = inferencer.visualizer.dataset_meta['classes']
    if hasattr(inferencer, 'classes'):
        assert tuple(inferencer.classes) == tuple(names)
    return tuple(names)


def test_names_come_from_the_config_or_the_checkpoint(inferencer, checkpoints):
    assert drawn_names(inferencer) == NAMES
    scope = type(inferencer).__module__.partition('.')[0]
    weights = torch.load(checkpoints[scope])
    meta = dict(dataset_meta=dict(classes=('x', 'y', 'z')))
    torch.save(dict(state_dict=weights, meta=meta), 'named.pth')
    found = build_inferencer(config(scope), 'named.pth', 'cpu')
    assert drawn_names(found) == ('x', 'y', 'z')


@pytest.mark.parametrize('kind', ['validation', 'nothing', 'classes'])
def test_config_needs_no_visualizer_and_no_test(inferencer, checkpoints, kind):
    scope = type(inferencer).__module__.partition('.')[0]
    cfg = config(scope, visualizer=dict(type='Visualizer'))
    data = cfg.pop('test_dataloader')
    if kind == 'validation':
        cfg.update(test_dataloader=None, val_dataloader=data)
    if kind == 'classes':  # as in pure-Python configs
        from mmcv.transforms import LoadImageFromFile

        data.dataset.pipeline[0] = dict(type=LoadImageFromFile)
        cfg.test_dataloader = data
        cfg.model.type = type(inferencer.model)
        cfg.default_scope = None
        cfg.visualizer = dict(type=type(inferencer.visualizer))
    text = cfg.pretty_text if kind != 'classes' else ''
    found = build_inferencer(cfg, checkpoints[scope], 'cpu')
    if text:
        assert cfg.pretty_text == text
    # Not high, since the usual pipeline of detectors makes images wide.
    path = save('a.jpg', size=(64, 8))
    assert predict(found, [path]) == ['outputs/drawings/a.jpg']
    named = drawn_names(found)
    assert named == (
        NAMES if kind != 'nothing' else tuple(f'class {i}' for i in range(3))
    )
    if kind != 'nothing':
        assert predict(inferencer, [path], 'same')
        one, two = (
            cv2.imread(f'{x}/drawings/a.jpg') for x in ('outputs', 'same')
        )
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(default_scope=None), 'has default_scope=None'),
        (
            dict(test_pipeline=[dict(type='LoadProposals')]),
            'does not load its images by LoadImageFromFile, but its steps are '
            'LoadProposals',
        ),
    ],
)
def test_config_that_cannot_predict_is_refused(checkpoints, changes, message):
    cfg = config('mmseg', test_dataloader=None, **changes)
    with pytest.raises(ConfigError, match=message):
        build_inferencer(cfg, checkpoints['mmseg'], 'cpu')


def test_device_that_does_not_exist_is_named(checkpoints):
    with pytest.raises(ConfigError, match='the device cuda:77 cannot be used'):
        build_inferencer(config('mmseg'), checkpoints['mmseg'], 'cuda:77')


def test_sources_that_were_found_are_taken(segmentor):
    sources = find_sources([save('a.jpg')])
    assert predict(segmentor, sources) == ['outputs/drawings/a.jpg']
