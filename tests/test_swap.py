"""Swapping the backbone of stock configs: they train, or an error says why."""

import gc
import logging

import pytest
import stock
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch.testing import assert_close

from mmefficientmod import EfficientMod, swap_backbone
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS
from mmefficientmod.swap.names import (
    BACKBONES,
    backbone_name,
    resolve_backbone,
)
from mmefficientmod.swap.necks_and_heads import fit_neck_and_heads
from mmefficientmod.swap.probe import Levels, option_of
from mmefficientmod.swap.weights import set_pretrained

MASK_RCNN = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
CAFFE = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py'
CONVNEXT_DET = (
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
)
BEIT_SEG = 'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py'
UPERNET = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
XXS = [32, 64, 128, 256]
pytestmark = pytest.mark.usefixtures('probed_once')


@pytest.fixture(autouse=True)
def free_models():
    """Free detectors, which have reference cycles, after each test."""
    yield
    gc.collect()


def swap(name, backbone='efficientmod_xxs', **kwargs):
    return swap_backbone(load_config(name), backbone, **kwargs)


@pytest.fixture
def logged(monkeypatch):
    """The messages of a swap, as (level, text)."""
    lines = []
    monkeypatch.setattr(
        'mmefficientmod.swap.log.print_log',
        lambda text, logger, level: lines.append((level, text)),
    )
    return lines


def was_logged(logged, *parts):
    return any(all(p in text for p in parts) for _, text in logged)


# Stock configs whose backbone can be replaced: one training step, one
# prediction. docs/swapping.md lists them and those that cannot work.

WORK = [
    # two-stage
    MASK_RCNN,
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'mmdet::dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py',
    CONVNEXT_DET,
    # one-stage, anchor-based
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py',
    'mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
    'mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py',
    # anchor-free
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    'mmdet::centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py',
    # instances and panoptic
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py',
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    # transformers
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    # segmentation
    'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    UPERNET,
    'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::knet/knet-s3_swin-t_upernet_8xb2-adamw-80k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py',
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py',
    BEIT_SEG,
    # classification
    RESNET,
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'mmpretrain::beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py',
    'mmpretrain::vgg/vgg11_8xb32_in1k.py',
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'mmpretrain::mlp_mixer/mlp-mixer-base-p16_64xb64_in1k.py',
]


# Slow on a CPU, mostly because of matching or wide heads.
SLOW = (
    'htc/', 'sparse_rcnn/', 'mask2former/', 'maskformer/', 'dino/', 'knet/',
    'hr18', 'hrnetv2p', 'upernet_8xb2-amp', 'beit-base_upernet', 'fastfcn/',
    'yolov3', 'cascade', 'centernet', 'upernet_r50', 'deeplabv3plus',
    'solov2/', 'panoptic_fpn/', 'convnext-t-p4-w7', 'point_rend/',
    'dconv-c3-c5', 'reppoints', 'vfnet', 'deformable_detr/',
    'dyhead/',
)  # fmt: skip


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow] if any(x in name for x in SLOW) else [],
            id=name.split('/')[-1][:-3],
        )
        for name in WORK
    ],
)
def test_swapped_stock_config_trains_and_predicts(name):
    logs, grads, predictions = stock.train_step_and_predict(name)
    for key, value in logs.items():
        assert torch.isfinite(torch.as_tensor(value)).all(), key
    assert len(grads) > 100
    for key, grad in grads.items():
        assert grad is not None, key
        assert torch.isfinite(grad).all(), key
    assert grads['backbone.stem.proj.weight'].abs().max() > 0
    assert len(predictions) == 2


REFUSED = {
    'mmdet::pascal_voc/faster-rcnn_r50-caffe-c4_ms-18k_voc0712.py': 'C4',
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py': 'DC5',
    'mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py': 'C4',
    'mmdet::detectors/cascade-rcnn_r50-rfp_1x_coco.py': 'second time',
    'mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py': (
        'stride 4 2 times'
    ),
    'mmseg::setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py': 'tokens',
    'mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py': 'tokens',
    'mmseg::segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py': (
        'tokens'
    ),
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py': (
        'decoder are one network'
    ),
    'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py': (
        'decoder are one network'
    ),
    'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': (  # noqa: E501
        'decoder are one network'
    ),
    'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py': 'no `backbone`',
    'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py': 'HRNet',
    'mmseg::mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py': (  # noqa: E501
        'strides 2, 4, 8'
    ),
    'mmseg::erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py': (
        'decoder are one network'
    ),
    'mmseg::vit/vit_deit-b16_upernet_8xb2-80k_ade20k-512x512.py': (
        'plain vision transformer'
    ),
    'mmpretrain::deit/deit-tiny_4xb256_in1k.py': 'LinearClsHead',
    'mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py': (
        'no ImageClassifier'
    ),
    'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py': (
        'no ImageClassifier'
    ),
}


@pytest.mark.parametrize(
    ('name', 'why'),
    REFUSED.items(),
    ids=[n.split('/')[-1][:-3] for n in REFUSED],
)
def test_config_that_needs_its_backbone_is_refused_with_the_reason(name, why):
    with pytest.raises(ConfigError, match=why) as error:
        swap(name)
    assert '\n' not in str(error.value)


# Channels of necks and heads.


def test_fpn_gets_the_channels_of_the_new_backbone():
    before = load_config(MASK_RCNN)
    before.custom_imports = dict(imports='json', allow_failed_imports=True)
    cfg = swap_backbone(before, 'efficientmod_s')
    assert cfg.model.backbone.type == 'mmefficientmod.EfficientMod'
    assert cfg.model.backbone.arch == 's'
    assert cfg.model.neck.in_channels == [32, 64, 144, 312]
    assert before.model.backbone.type == 'ResNet'  # untouched
    assert before.model.neck.in_channels == [256, 512, 1024, 2048]
    assert cfg.custom_imports == dict(
        imports=['mmefficientmod', 'json'], allow_failed_imports=True
    )
    assert 'init_cfg' not in cfg.model.backbone


@pytest.mark.parametrize('arch', ARCHS)
def test_every_variant_of_efficientmod_has_a_name(arch):
    cfg = swap(MASK_RCNN, f'efficientmod_{arch}')
    assert cfg.model.neck.in_channels == list(ARCHS[arch]['dims'])


def test_new_backbone_gives_the_levels_that_the_neck_reads():
    yolo = swap('mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py').model
    assert yolo.backbone.out_indices == (1, 2, 3)
    assert yolo.neck.in_channels == [256, 128, 64]  # the last level first
    yolof = swap('mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py').model
    assert yolof.backbone.out_indices == (3,)
    assert yolof.neck.in_channels == 256
    ssd = swap('mmdet::ssd/ssd300_coco.py').model
    assert ssd.backbone.out_indices == (1, 2)
    assert list(ssd.neck.in_channels) == [64, 128]
    assert list(ssd.bbox_head.in_channels)[:3] == [64, 128, 512]
    bifpn = 'mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py'
    assert swap(bifpn).model.neck.in_channels == XXS[1:]


def test_heads_get_the_channels_at_their_in_index():
    fcn = swap('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py').model
    assert fcn.decode_head.in_channels == 256
    assert fcn.auxiliary_head.in_channels == 128
    upernet = swap(UPERNET).model
    assert upernet.decode_head.in_channels == XXS
    assert upernet.auxiliary_head.in_channels == 128
    ham = 'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'
    assert swap(ham).model.decode_head.in_channels == XXS[1:]
    plus = swap(
        'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
    ).model.decode_head
    assert (plus.c1_in_channels, plus.in_channels) == (32, 256)
    jpu = swap(
        'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py'
    ).model
    assert jpu.decode_head.in_channels == 2048  # output of the neck
    assert jpu.auxiliary_head.in_channels == 128  # passed on by the neck


def test_swap_warns_of_heads_for_dilated_features(logged):
    swap('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    assert any(
        level == logging.WARNING and 'now see 4, 8, 16 and 32' in text
        for level, text in logged
    )


def test_neck_that_makes_a_pyramid_is_removed(logged):
    cfg = swap(BEIT_SEG)
    assert cfg.model.neck is None
    assert cfg.model.decode_head.in_channels == XXS
    assert cfg.model.auxiliary_head.in_channels == 128
    assert was_logged(logged, 'Feature2Pyramid')


def test_classifier_inside_the_backbone_becomes_a_linear_head(logged):
    head = swap('mmpretrain::vgg/vgg11_8xb32_in1k.py').model.head
    assert head.type == 'LinearClsHead'
    assert (head.num_classes, head.in_channels) == (1000, 256)
    assert head.loss.type == 'CrossEntropyLoss'
    assert was_logged(logged, 'a part of VGG')


@pytest.mark.parametrize(
    'name', [RESNET, 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py']
)
def test_classifier_head_reads_the_pooled_final_norm(name):
    model = swap(name).model
    assert model.backbone.final_norm is True
    assert model.backbone.out_indices == (3,)
    assert model.neck.type == 'GlobalAveragePooling'
    assert model.head.in_channels == 256


# Options, weights and images.


@pytest.mark.parametrize('stages', [0, 1])  # 0 freezes the stem
def test_frozen_stages_need_pretrained_weights(logged, stages):
    cfg = load_config(MASK_RCNN)
    cfg.model.backbone.frozen_stages = stages
    swapped = swap_backbone(cfg, 'efficientmod_xxs').model.backbone
    assert 'frozen_stages' not in swapped
    assert was_logged(logged, f'frozen_stages={stages}', 'random weights')
    assert was_logged(logged, 'norm_eval=True', 'no batch norms')
    swapped = swap_backbone(cfg, 'efficientmod_xxs', 'x.pth').model.backbone
    assert swapped.frozen_stages == stages
    assert 'norm_eval' not in swapped


def test_frozen_stages_0_of_convnext_freezes_nothing(logged):
    cfg = load_config(CONVNEXT_DET)
    cfg.model.backbone.frozen_stages = 0
    swapped = swap_backbone(cfg, 'efficientmod_xxs', 'x.pth').model.backbone
    assert 'frozen_stages' not in swapped
    assert not was_logged(logged, 'frozen_stages')


def test_norm_eval_needs_pretrained_weights(logged, tmp_path):
    resnet = dict(type='ResNet', depth=18)
    assert 'norm_eval' not in swap(MASK_RCNN, resnet).model.backbone
    assert was_logged(logged, 'norm_eval=True', 'mean 0 and variance 1')
    weights = stock.build(swap(MASK_RCNN, resnet)).backbone.state_dict()
    torch.save(weights, tmp_path / 'r18.pth')
    kept = swap(MASK_RCNN, resnet, pretrained=tmp_path / 'r18.pth')
    assert kept.model.backbone.norm_eval is True


def test_weights_of_the_old_model_are_removed(logged):
    cfg = load_config(UPERNET)
    assert cfg.model.pretrained
    cfg.load_from = 'https://example.org/whole-model.pth'
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    assert cfg.model.pretrained is None
    assert cfg.model.init_cfg is None
    assert cfg.load_from is None
    assert was_logged(logged, 'load_from=', 'whole-model.pth')
    assert was_logged(logged, 'pretrained=open-mmlab://resnet50_v1c')
    assert was_logged(logged, 'init_cfg=', 'x.pth')


def test_pretrained_weights_are_loaded_into_efficientmod(tmp_path):
    torch.manual_seed(3)
    weights = EfficientMod('xxs').state_dict()
    path = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict=weights), path)
    model = stock.build(swap(MASK_RCNN, pretrained=path))
    model.init_weights()
    assert_close(model.backbone.state_dict(), weights)


MOBILENET = dict(type='mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 6))


@pytest.fixture(scope='module')
def mobilenet(tmp_path_factory):
    """A classifier's checkpoint, as MMPretrain writes it."""
    folder = tmp_path_factory.mktemp('mobilenet')
    cfg = load_config('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py')
    torch.manual_seed(5)
    weights = stock.build(cfg).state_dict()
    torch.save(dict(state_dict=weights), folder / 'whole.pth')
    first = {k: v for k, v in weights.items() if 'layer7' not in k}
    torch.save(dict(state_dict=first), folder / 'partly.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1))), folder / 'other.pth')
    return folder


def test_pretrained_weights_are_loaded_into_other_backbones(mobilenet):
    path = mobilenet / 'whole.pth'
    cfg = swap(MASK_RCNN, MOBILENET, pretrained=path)
    cfg = Config.fromstring(cfg.pretty_text, '.py')  # as a run dumps it
    model = stock.build(cfg)
    weights = torch.load(path, weights_only=True)['state_dict']
    for name, value in model.backbone.state_dict().items():
        assert_close(value, weights[f'backbone.{name}'])


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('other.pth', 'does not fit MobileNetV2'),
        ('partly.pth', 'does not fit MobileNetV2'),
        ('none.pth', 'none.pth does not exist'),
    ],
)
def test_weights_that_do_not_fit_another_backbone_are_refused(
    mobilenet, name, message
):
    with pytest.raises(ConfigError, match=message):
        swap(MASK_RCNN, MOBILENET, pretrained=str(mobilenet / name))
    cfg = load_config(UPERNET)
    cfg.model.backbone = MOBILENET
    with pytest.raises(ConfigError, match=message):
        set_pretrained(cfg, str(mobilenet / name))


def test_weights_may_lack_norms_of_outputs(tmp_path):
    swin = dict(type='mmdet.SwinTransformer', depths=(1, 1, 1, 1))
    with DefaultScope.overwrite_default_scope('mmdet'):
        weights = MODELS.build(swin).state_dict()
    weights = {
        f'backbone.{k}': v
        for k, v in weights.items()
        if not k.startswith('norm')
    }
    path = tmp_path / 'swin.pth'
    torch.save(dict(state_dict=weights), path)
    model = stock.build(swap(MASK_RCNN, swin, pretrained=path))
    assert_close(
        model.backbone.patch_embed.projection.weight,
        weights['backbone.patch_embed.projection.weight'],
    )
    torch.save(dict(state_dict={'head.fc': torch.ones(1)}), path)
    with pytest.raises(ConfigError, match='SwinTransformer'):
        swap(MASK_RCNN, swin, pretrained=path)


def test_init_cfg_of_the_user_keeps_its_keys(mobilenet):
    backbone = dict(
        MOBILENET, init_cfg=dict(type='Pretrained', prefix='backbone.')
    )
    cfg = swap(MASK_RCNN, backbone, pretrained=mobilenet / 'whole.pth')
    assert cfg.model.backbone.init_cfg.prefix == 'backbone.'
    ours = dict(
        BACKBONES['efficientmod_xxs'],
        init_cfg=dict(type='Pretrained', use_ema=True),
    )
    init_cfg = swap(
        MASK_RCNN, ours, pretrained='x.pth'
    ).model.backbone.init_cfg
    assert init_cfg == dict(
        type='Pretrained', use_ema=True, checkpoint='x.pth'
    )


def test_frozen_stages_are_dropped_if_stages_are_numbered_differently(logged):
    cfg = load_config('mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py')
    cfg.model.backbone.frozen_stages = 5
    backbone = swap_backbone(cfg, 'efficientmod_xxs', 'x.pth').model.backbone
    assert 'frozen_stages' not in backbone
    assert was_logged(logged, 'frozen_stages=5', 'differently')


def test_grey_images_keep_their_normalisation():
    """A grey image has no ImageNet mean of three colours."""
    cfg = load_config(UPERNET)
    cfg.model.backbone.in_channels = 1
    grey = dict(mean=[120.0], std=[60.0], bgr_to_rgb=False)
    cfg.model.data_preprocessor.update(grey)
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    model = stock.build(cfg)
    images = [torch.zeros(1, 64, 64, dtype=torch.uint8)] * 2
    data = model.data_preprocessor(dict(inputs=images), False)
    assert model.backbone(data['inputs'])[0].shape[:2] == (2, 32)


def test_reidentification_is_swapped_like_classification():
    model = swap(
        'mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py'
    ).model
    assert model.head.in_channels == 256
    assert model.neck == dict(type='GlobalAveragePooling')
    assert 'bgr_to_rgb' not in model.data_preprocessor


def test_preprocessor_of_mmpretrain_gets_to_rgb():
    cfg = load_config(RESNET)
    cfg.data_preprocessor.pop('to_rgb')
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    assert cfg.data_preprocessor.to_rgb is True
    assert 'bgr_to_rgb' not in cfg.data_preprocessor
    stock.build(cfg)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::soft_teacher/'
        'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py',
        'mmdet::bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-'
        'mot17halftrain_test-mot17halfval.py',
    ],
)
def test_detector_inside_a_wrapper_is_swapped(name):
    cfg = swap(name, pretrained='x.pth')
    assert cfg.model.detector.backbone.arch == 'xxs'
    assert cfg.model.detector.backbone.init_cfg.checkpoint == 'x.pth'
    assert cfg.model.detector.neck.in_channels[-1] == 256


def test_removed_options_are_logged(logged):
    swap(MASK_RCNN)
    assert was_logged(
        logged, 'are removed', 'depth=50', "style='pytorch'", 'init_cfg={'
    )


def test_type_may_be_a_class():
    """MMEngine's pure Python configs have classes."""
    from mmdet.models import ResNet

    cfg = load_config(MASK_RCNN)
    cfg.model.backbone.type = ResNet
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    assert cfg.model.neck.in_channels == XXS


def test_images_are_normalised_for_the_new_weights(logged):
    caffe = swap(CAFFE).model.data_preprocessor
    rgb = load_config(MASK_RCNN).model.data_preprocessor
    assert {k: caffe[k] for k in ('mean', 'std', 'bgr_to_rgb')} == {
        k: rgb[k] for k in ('mean', 'std', 'bgr_to_rgb')
    }
    assert was_logged(logged, 'normalised')
    logged.clear()
    swap(MASK_RCNN)
    swap(RESNET)
    assert not was_logged(logged, 'normalised')
    yolox = swap('mmdet::yolox/yolox_s_8xb8-300e_coco.py').model
    assert yolox.data_preprocessor.mean == rgb.mean


def test_custom_keys_are_kept_if_a_parameter_matches(logged):
    cfg = load_config(UPERNET)
    keys = {
        'backbone': dict(lr_mult=0.1),
        'backbone.layer1': dict(lr_mult=0.2),
        'backbone.stages.0': dict(lr_mult=0.3),
        'conv_seg': dict(lr_mult=10.0),
        'layer2.0': dict(decay_mult=0.0),
    }
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=keys)
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    assert set(cfg.optim_wrapper.paramwise_cfg.custom_keys) == {
        'backbone',
        'backbone.stages.0',
        'conv_seg',
    }
    assert was_logged(logged, 'backbone.layer1')
    assert was_logged(logged, 'layer2.0')


@pytest.mark.parametrize(
    ('name', 'rate'),
    [
        (CONVNEXT_DET, 0.95),
        (BEIT_SEG, 0.9),
        (
            'mmpretrain::beit/benchmarks/'
            'beit-base-p16_8xb128-coslr-100e_in1k.py',
            0.65,
        ),
    ],
)
def test_layer_wise_decay_uses_the_depths_of_the_new_backbone(name, rate):
    cfg = swap(name)
    model = stock.build(cfg)
    wrapper = cfg.optim_wrapper
    wrapper.pop('loss_scale', None)
    wrapper.type = 'OptimWrapper'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optim = build_optim_wrapper(model, wrapper)
    groups = {g['param_name']: g for g in optim.optimizer.param_groups}
    assert len(groups) == len(list(model.parameters()))
    base = wrapper.optimizer.lr
    # Layers of xxs: stem, stages 1 and 2, three groups of stage 3, stage 4,
    # and all others.
    for key, depth in {
        'backbone.stem.proj.weight': 0,
        'backbone.stages.0.blocks.0.gamma': 1,
        'backbone.stages.1.downsample.proj.bias': 2,
        'backbone.stages.2.downsample.proj.bias': 3,
        'backbone.stages.2.blocks.2.norm.weight': 3,
        'backbone.stages.2.blocks.6.norm1.weight': 5,
        'backbone.stages.3.blocks.0.mlp.fc1.weight': 6,
    }.items():
        assert groups[key]['lr'] == pytest.approx(base * rate ** (7 - depth))
    head = [k for k in groups if not k.startswith('backbone.')]
    assert {groups[k]['lr'] for k in head} == {base}
    if 'mmpretrain' not in name:  # as the toolbox's own constructor does
        assert groups['backbone.stem.norm.weight']['weight_decay'] == 0
    assert groups['backbone.stem.proj.weight']['weight_decay'] > 0


def test_layer_wise_decay_is_dropped_without_get_layer_depth(logged):
    cfg = swap(CONVNEXT_DET, dict(type='mmdet.ResNet', depth=18))
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')
    wrapper.pop('loss_scale', None)
    model = stock.build(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    assert {g['lr'] for g in groups} == {wrapper['optimizer'].lr}
    assert any(
        level == logging.WARNING and 'get_layer_depth' in text
        for level, text in logged
    )


# Other backbones.


def test_any_registered_backbone_is_accepted(logged):
    r18 = swap(MASK_RCNN, dict(type='ResNet', depth=18)).model
    assert r18.neck.in_channels == [64, 128, 256, 512]
    mobile = swap(
        UPERNET,
        "dict(type='mmpretrain.MobileNetV2', out_indices=(1, 2, 4, 6))",
    ).model
    assert mobile.decode_head.in_channels == [24, 32, 96, 320]
    part = swap(
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        "{'type': 'ResNet', 'depth': 18}",
    ).model
    assert part.backbone.out_indices == (1, 2, 3)
    assert part.neck.in_channels == [128, 256, 512]
    for kind, channels in ('VAN', 256), ('ConvNeXt', 768):
        cfg = swap(RESNET, dict(type=kind, arch='tiny'))
        assert cfg.model.head.in_channels == channels
        data = dict(inputs=torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        with torch.no_grad():
            (logits,) = stock.build(cfg).eval().test_step(data)
        assert logits.pred_score.shape == (1000,)


def test_options_in_the_dict_override_old_ones():
    new = dict(BACKBONES['efficientmod_xxs'], frozen_stages=2, with_cp=True)
    backbone = swap(MASK_RCNN, new, pretrained='x.pth').model.backbone
    assert backbone.frozen_stages == 2
    assert backbone.with_cp is True
    assert BACKBONES['efficientmod_xxs'].keys() == {'type', 'arch'}


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        ('efficientmod_m', 'did you mean efficientmod_'),
        ('alexnet', r"no backbone is called 'alexnet'\. The names are"),
        ('resnet51', 'did you mean resnet50'),
        (dict(arch='s'), 'neither a name nor a dict'),
        ('dict(type=ResNet)', 'cannot be read'),
        ('{1, 2', 'cannot be read'),
        (dict(type='NoSuchNet'), "'NoSuchNet' is registered"),
        (dict(type='ResNet', depth=19), 'cannot be built'),
        (dict(type='ResNet', deph=18), 'cannot be built'),
        (dict(type='mmpretrain.MobileNetV2'), 'out_indices'),
        (
            dict(type='mmpretrain.VisionTransformer', out_type='featmap'),
            'reads strides 4, 8, 16, 32',
        ),
    ],
)
def test_bad_backbone_is_refused_with_the_reason(backbone, message):
    with pytest.raises(ConfigError, match=message):
        swap(MASK_RCNN, backbone)


def test_none_in_the_dict_of_a_backbone_is_a_value():
    resnet = dict(type='mmdet.ResNet', depth=18)
    assert option_of(resnet, 'out_indices') == (0, 1, 2, 3)
    assert option_of({**resnet, 'out_indices': None}, 'out_indices') is None
    assert option_of(resnet, 'no_such_option') is None


def test_head_without_in_index_must_read_all_levels():
    levels = Levels((4, 8, 16, 32), (8, 16, 24, 32))
    head = dict(type='X', in_channels=[1, 2, 3])
    with pytest.raises(ConfigError, match='match the 4 levels of the'):
        fit_neck_and_heads(
            ConfigDict(neck=None, decode_head=head), Levels(()), levels
        )


def test_name_may_have_hyphens_or_be_the_type_of_a_dict():
    assert backbone_name('efficientmod_s-conv') == 'efficientmod_s_conv'
    assert backbone_name("dict(type='mmdet.ResNet')") == 'resnet'
    assert resolve_backbone('efficientmod_s-conv').arch == 's_conv'


def test_config_without_a_model_is_refused():
    with pytest.raises(ConfigError, match='no model'):
        swap_backbone(Config(dict(default_scope='mmdet')), 'efficientmod_s')


@pytest.mark.parametrize('arch', ARCHS)
def test_layer_depth_rises_from_stem_to_head(arch):
    model = EfficientMod(arch, final_norm=True)
    depths = [
        model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    ]
    layers = [layer for layer, _ in depths]
    (count,) = {n for _, n in depths}
    assert layers == sorted(layers)
    assert set(layers) == set(range(count))  # the norm shares the head's
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (
        count - 1,
        count,
    )
