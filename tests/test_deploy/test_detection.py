"""Detectors as exported files: they find what MMDetection finds."""

import gc
import zlib

import numpy as np
import pytest
import stock
import torch
from helpers import TINY
from mmengine.config import ConfigDict
from torch.testing import assert_close

from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError

pytest.importorskip('onnxruntime')
stock.import_toolbox('mmdet')

from mmcv.ops import batched_nms as mmcv_nms  # noqa: E402
from mmdet.models.roi_heads import SingleRoIExtractor  # noqa: E402
from mmdet.registry import TASK_UTILS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

from mmefficientmod.deploy.detection import DetectorGraph  # noqa: E402
from mmefficientmod.deploy.detection.boxes import (  # noqa: E402
    Decoder,
    batched_nms,
)
from mmefficientmod.deploy.detection.rois import _extract  # noqa: E402
from mmefficientmod.deploy.files import open_file  # noqa: E402
from mmefficientmod.deploy.onnx_files import OPSET, write_onnx  # noqa: E402

CLASSES = 5
MASK_RCNN = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
FASTER_RCNN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'
YOLOX = 'yolox/yolox_tiny_8xb8-300e_coco.py'
RTMDET = 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
NAMED = [
    MASK_RCNN,
    FASTER_RCNN,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    RETINANET,
    'atss/atss_r50_fpn_1x_coco.py',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'gfl/gfl_r50_fpn_1x_coco.py',
    RTMDET,
    YOLOX,
]
OTHERS = [
    'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'fsaf/fsaf_r50_fpn_1x_coco.py',
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'yolof/yolof_r50-c5_8xb8-1x_coco.py',
]
# One of each kind of head: by regions, and by anchors, points and grids.
QUICK = (
    MASK_RCNN,
    RETINANET,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    YOLOX,
)
UNCLIPPED = ('yolox', 'yolo/')  # their boxes may lie outside of the image
# Sizes of images: the exported one, one that is not a multiple of anything,
# and one with fewer candidates than `nms_pre`.
SIZES = [(128, 96), (101, 135), (37, 40)]


@pytest.fixture(autouse=True)
def free_models():
    """Free detectors, which have reference cycles, after each test."""
    yield
    gc.collect()


def small(name, **test_cfg):
    """A stock detector with few channels, whose weights tell boxes apart.

    Args:
        name: The config.
        test_cfg: Settings for the last stage of the test.
    """
    cfg = load_config(f'mmdet::{name}')
    model = cfg.model
    # A tensor of this many channels has this many here.
    shrink(model, {256: 64, 1024: 64, 96: 16, 80: CLASSES})
    given = model.neck.in_channels
    levels = 1 if isinstance(given, int) else len(given)
    dims = list(TINY['dims'])[-levels:]
    if levels > 1 and given[0] > given[-1]:  # from the last level on
        dims.reverse()
    model.neck.in_channels = dims if levels > 1 else dims[0]
    model.neck.pop('start_level', None)
    model.backbone = ConfigDict(
        type='mmefficientmod.EfficientMod',
        arch=TINY,
        out_indices=tuple(range(4 - levels, 4)),
    )
    for part in model.test_cfg, model.test_cfg.get('rpn'):
        if part and 'nms_pre' in part:
            part.update(nms_pre=100)
    if name == RTMDET:  # whose sides are positive only after a training
        model.bbox_head.exp_on_reg = True
    last = model.test_cfg.get('rcnn', model.test_cfg)
    last.update(test_cfg)
    torch.manual_seed(0)
    detector = stock.build(cfg).eval()
    for key, weight in detector.named_parameters():
        torch.manual_seed(zlib.crc32(key.encode()))
        if 'head' in key and weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
        elif 'head' in key and key.endswith('bias'):
            weight.data.normal_(std=0.5)
    return detector


def shrink(node, sizes):
    """Replace numbers of channels and classes in a config."""
    for key, value in node.items():
        if isinstance(value, dict):
            shrink(value, sizes)
        elif isinstance(value, list) and value:
            for item in value:
                if isinstance(item, dict):
                    shrink(item, sizes)
        elif 'channels' in key or key.startswith('num_'):
            node[key] = sizes.get(value, value)


def image(height, width, seed=0, scale=1.5):
    torch.manual_seed(seed)
    return scale * torch.randn(1, 3, height, width)


def exported(graph, folder, example):
    """The file of a graph, opened."""
    path = folder / 'model.onnx'
    write_onnx(graph, example, path, graph.outputs, size=True)
    return open_file(path, threads=1)


def run(file, image):
    return [torch.from_numpy(x) for x in file.run(image.numpy()).values()]


@torch.no_grad()
def reference(graph, image):
    return graph.reference(image)


def assert_same_detections(found, expected):
    """Compare two sets of detections; their order may differ."""
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert [x.shape for x in found] == [x.shape for x in expected]
    nearest = nearest_of(found[:3], expected[:3])
    boxes, scores, labels, *masks = found
    expected = [x[nearest] for x in expected]
    assert torch.equal(labels, expected[2])
    assert_close(boxes, expected[0], rtol=0, atol=5e-3)
    assert_close(scores, expected[1], rtol=0, atol=1e-4)
    if masks:
        assert_close(masks[0], expected[3], rtol=0, atol=1e-3)


def nearest_of(found, expected):
    """For each of the first detections, the nearest of the second."""
    boxes, scores, labels = (
        (x[:, None], y) for x, y in zip(found, expected, strict=True)
    )
    distance = (boxes[0] - boxes[1]).abs().sum(-1)
    distance += (scores[0] - scores[1]).abs()
    distance += 1e4 * (labels[0] != labels[1])
    if not distance.numel():
        return torch.arange(0)
    nearest = distance.argmin(1)
    assert len(nearest.unique()) == len(nearest)
    return nearest


def check(name, folder):
    graph = DetectorGraph(small(name, score_thr=0.02, max_per_img=50))
    sizes = SIZES
    if name == RTMDET:  # its images are padded by the pipeline
        sizes = [(-(-h // 32) * 32, -(-w // 32) * 32) for h, w in SIZES]
    images = [image(*size, seed) for seed, size in enumerate(sizes)]
    file = exported(graph, folder, images[0])
    for given, (height, width) in zip(images, sizes, strict=True):
        found, expected = run(file, given), reference(graph, given)
        assert len(expected[0]) > 5
        assert_same_detections(found, expected)
        if not name.startswith(UNCLIPPED):
            assert (found[0] >= 0).all()
            limits = torch.tensor([width, height, width, height])
            assert (found[0] <= limits).all()
    return graph


def quick(name):
    """A parameter that is slow for all but one detector of each kind."""
    # PyTorch 2.1 takes long to write a file.
    late = name not in (QUICK[:2] if OPSET < 20 else QUICK)
    return pytest.param(name, marks=[pytest.mark.slow] if late else [])


@pytest.mark.parametrize('name', [quick(name) for name in NAMED])
def test_a_file_finds_what_mmdetection_finds_at_any_size(name, tmp_path):
    graph = check(name, tmp_path)
    assert ('masks' in graph.outputs) == ('mask' in name)


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_a_file_of_another_detector_finds_the_same(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.parametrize('name', [FASTER_RCNN, YOLOX])
def test_the_reference_is_what_the_model_predicts(name):
    """Of an image that MMDetection normalises and pads itself."""
    detector = small(name, score_thr=0.02, max_per_img=50)
    height, width = 45, 70
    given = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    meta = dict(
        img_shape=(height, width),
        ori_shape=(height, width),
        scale_factor=(1.0, 1.0),
    )
    batch = dict(
        inputs=[given], data_samples=[DetDataSample(metainfo=dict(meta))]
    )
    normalised = detector.data_preprocessor(batch)['inputs'].clone()
    assert normalised.shape[2:] == (64, 96)
    graph = DetectorGraph(detector)
    boxes, scores, labels = reference(graph, normalised[..., :height, :width])
    with torch.no_grad():
        found = detector.test_step(batch)[0].pred_instances
    assert len(boxes) > 5
    assert_close(boxes, found.bboxes)
    assert_close(scores, found.scores)
    assert torch.equal(labels, found.labels)


@pytest.mark.parametrize('recorded', ['none', 'some'])
@pytest.mark.parametrize(
    'name', [quick(name) for name in (MASK_RCNN, RETINANET, YOLOX)]
)
def test_no_detection_and_some_are_one_graph(name, recorded, tmp_path):
    """Whatever is recorded: MMDetection takes two ways."""
    detector = small(name, score_thr=0.0)
    images = torch.zeros(1, 3, 64, 96), image(64, 96)
    graph = DetectorGraph(detector)
    best = [reference(graph, x)[1].max().item() for x in images]
    weak, strong = (images[i] for i in np.argsort(best))
    assert abs(best[0] - best[1]) > 1e-4
    part = detector.roi_head if name == MASK_RCNN else detector.bbox_head
    part.test_cfg.score_thr = sum(best) / 2
    graph = DetectorGraph(detector)
    example = weak if recorded == 'none' else strong
    file = exported(graph, tmp_path, example)
    assert [len(x) for x in run(file, weak)] == [0] * len(graph.outputs)
    found = run(file, strong)
    assert len(found[0])
    assert_same_detections(found, reference(graph, strong))


def test_the_model_stays_as_it_was_and_shares_its_weights():
    detector = small(MASK_RCNN, score_thr=0.02)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    graph = DetectorGraph(detector)
    with torch.no_grad():
        graph(image(64, 64))
    assert_close(detector.state_dict(), before, rtol=0, atol=0)
    own = dict(detector.named_parameters())
    for name, weight in graph.recorded.named_parameters():
        assert weight is own[name]
    head = detector.rpn_head
    assert '_predict_by_feat_single' not in vars(head)
    assert not isinstance(head.bbox_coder, Decoder)


@pytest.mark.parametrize(
    ('name', 'changes', 'reason'),
    [
        ('detr/detr_r50_8xb2-150e_coco.py', {}, 'DETR .* SingleStageDetector'),
        ('htc/htc_r50_fpn_1x_coco.py', {}, 'HybridTaskCascadeRoIHead works'),
        ('solo/solo_r50_fpn_1x_coco.py', {}, 'SOLO .* SingleStageDetector'),
        ('paa/paa_r50_fpn_1x_coco.py', {}, 'its PAAHead works'),
        ('ssd/ssd300_coco.py', {}, 'SSDHead has no loss_cls'),
        (
            'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',
            {},
            'it has no RPN',
        ),
        (
            'dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
            {},
            'DeformConv2dPack of mmcv',
        ),
        (
            RETINANET,
            {'test_cfg.nms': dict(type='soft_nms', iou_threshold=0.5)},
            'no soft_nms, .* test_cfg of RetinaHead',
        ),
        (
            RETINANET,
            {'test_cfg.nms': dict(type='nms', iou_threshold=0.5, offset=1)},
            'NMS with offset=1',
        ),
        (
            RETINANET,
            {'bbox_head.bbox_coder.type': 'LegacyDeltaXYWHBBoxCoder'},
            'LegacyDeltaXYWHBBoxCoder of RetinaHead',
        ),
        (
            FASTER_RCNN,
            {'roi_head.bbox_roi_extractor.roi_layer': dict(
                type='RoIPool', output_size=7
            )},
            'by RoIPool',
        ),
    ],
)  # fmt: skip
def test_another_detector_is_refused_in_one_sentence(name, changes, reason):
    cfg = load_config(f'mmdet::{name}')
    cfg.merge_from_dict({f'model.{k}': v for k, v in changes.items()})
    for key, value in changes.items():  # not merged with what was there
        *path, last = key.split('.')
        node = cfg.model
        for part in path:
            node = node[part]
        node[last] = ConfigDict(value) if isinstance(value, dict) else value
    with stock.DefaultScope.overwrite_default_scope('mmdet'):
        model = stock.MODELS.build(cfg.model)
    with pytest.raises(ConfigError, match=reason) as caught:
        DetectorGraph(model)
    assert str(caught.value).endswith('its backbone can (--part backbone)')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('number', [0, 1, 60])
@pytest.mark.parametrize(
    'options', [{}, dict(class_agnostic=True), dict(max_num=7)]
)
def test_nms_keeps_what_mmcv_keeps(options, number):
    torch.manual_seed(0)
    corners = torch.rand(number, 2) * 40
    boxes = torch.cat([corners, corners + 10 + torch.rand(number, 2)], 1)
    scores = torch.rand(number)
    labels = torch.arange(number) % 3
    config = dict(type='nms', iou_threshold=0.3, **options)
    found = batched_nms(boxes, scores, labels, config)
    if not number:  # mmcv cannot
        assert found.shape == (0,)
        return
    _, expected = mmcv_nms(boxes, scores, labels, config)
    assert number == 1 or len(expected) < number
    assert torch.equal(found, expected)


@pytest.mark.parametrize('clip', [True, False])
@pytest.mark.parametrize(
    'config',
    [
        dict(type='DeltaXYWHBBoxCoder', target_stds=(0.1, 0.2, 0.3, 0.4)),
        dict(type='DeltaXYWHBBoxCoder', add_ctr_clamp=True, ctr_clamp=3),
        dict(type='TBLRBBoxCoder', normalizer=0.5),
        dict(type='DistancePointBBoxCoder'),
    ],
)
def test_boxes_are_decoded_as_by_the_coder(config, clip):
    torch.manual_seed(0)
    with stock.DefaultScope.overwrite_default_scope('mmdet'):
        coder = TASK_UTILS.build(dict(config, clip_border=clip))
    corners = torch.rand(20, 2) * 60
    priors = torch.cat([corners, corners + 20], 1)
    if 'Point' in config['type']:
        priors = corners
    predictions = 4 * torch.randn(20, 4)
    size = (50, 70)
    expected = coder.decode(priors, predictions, max_shape=size)
    found = Decoder(coder).decode(priors, predictions, max_shape=size)
    assert_close(found, expected)
    inside = (expected >= 0).all() and (expected[:, 2] <= 70).all()
    assert inside == clip


def test_regions_are_read_from_the_level_for_their_size():
    torch.manual_seed(0)
    strides = [4, 8, 16, 32]
    extractor = SingleRoIExtractor(
        dict(type='RoIAlign', output_size=7, sampling_ratio=0), 8, strides
    )
    features = tuple(torch.randn(1, 8, 512 // s, 512 // s) for s in strides)
    sides = torch.tensor([[20.0], [112], [224], [300], [448], [500], [0]])
    rois = torch.cat([torch.zeros(7, 3), sides, sides], 1)
    expected = extractor(features, rois)
    assert_close(_extract(extractor, features, rois), expected)
    scaled = extractor(features, rois, roi_scale_factor=1.2)
    assert_close(_extract(extractor, features, rois, 1.2), scaled)


@pytest.mark.parametrize('recorded', [0, 60])
def test_nms_that_was_recorded_takes_any_number(recorded, tmp_path):
    class Nms(torch.nn.Module):
        def forward(self, boxes):
            labels = torch.arange(boxes.shape[0]) % 3
            scores = boxes[:, 0] * 0.01
            return batched_nms(boxes, scores, labels, dict(iou_threshold=0.1))

    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 40
    boxes = torch.cat([corners, corners + 10], 1)
    path = tmp_path / 'nms.onnx'
    torch.onnx.export(
        Nms(), (boxes[:recorded],), str(path), opset_version=OPSET,
        input_names=['image'], output_names=['kept'],
        dynamic_axes=dict(image={0: 'boxes'}, kept={0: 'kept'}),
        **(dict(dynamo=False) if OPSET >= 20 else {}),
    )  # fmt: skip
    file = open_file(path, threads=1)
    for number in 60, 1, 0:
        (found,) = run(file, boxes[:number])
        assert torch.equal(found, Nms()(boxes[:number]))
    assert len(Nms()(boxes)) > 20
