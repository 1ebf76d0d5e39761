"""Levels that nobody reads, and models inside wrappers."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmefficientmod import swap_backbone
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, find_model
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.swap.probe import Levels
from mmefficientmod.swap.unread import leave_out, levels_read

RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
pytestmark = pytest.mark.usefixtures('probed_once')


@pytest.mark.parametrize('name', [RETINANET, FCN], ids=['retinanet', 'fcn'])
@pytest.mark.parametrize(
    'backbone',
    [
        'poolformer_s12',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ('fasternet_t0', 'pvt_v2_b0', 'van_tiny')
        ),
    ],
)
def test_every_parameter_of_the_backbone_gets_a_gradient(name, backbone):
    """Of one of each family that has a norm for each level."""
    cfg = swap_backbone(load_config(name), backbone)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).train()
    feats = model.backbone(torch.rand(2, 3, 64, 64))
    outs = (
        model.neck(feats)
        if model.with_neck
        else [model.decode_head(feats), model.auxiliary_head(feats)]
    )
    sum(x.sum() for x in outs).backward()
    without = [
        n for n, p in model.backbone.named_parameters() if p.grad is None
    ]
    assert without == []


def test_neck_and_heads_count_the_levels_that_are_left():
    model = swap_backbone(load_config(RETINANET), 'van_tiny').model
    assert model.backbone.out_indices == (1, 2, 3)
    assert model.neck.start_level == 0
    assert model.neck.in_channels == [64, 160, 256]
    assert model.neck.num_outs == 5
    model = swap_backbone(load_config(FCN), 'van_tiny').model
    assert model.backbone.out_indices == (2, 3)
    for head, index, channels in (
        (model.decode_head, 1, 256), (model.auxiliary_head, 0, 160),
    ):  # fmt: skip
        assert (head.in_index, head.in_channels) == (index, channels)
    plus = 'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py'
    model = swap_backbone(load_config(f'mmseg::{plus}'), 'van_tiny').model
    assert model.backbone.out_indices == (0, 2, 3)
    assert model.decode_head.c1_in_channels == 32
    assert model.decode_head.in_index == 2


def test_backbone_without_a_choice_of_levels_keeps_the_neck():
    hrnet = load_config('mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py')
    model = swap_backbone(
        load_config(RETINANET), dict(hrnet.model.backbone, init_cfg=None)
    ).model
    assert model.neck.start_level == 1
    assert model.neck.in_channels == [18, 36, 72, 144]


@pytest.mark.parametrize(
    ('neck', 'read', 'changed'),
    [
        (dict(type='FPN', num_outs=4), (0, 1, 2, 3), {}),
        (
            dict(type='FPN', num_outs=3, start_level=2, add_extra_convs=True),
            (2, 3),
            dict(start_level=0),
        ),
        (
            dict(type='FPN', num_outs=2, start_level=1, end_level=2),
            (1, 2),
            dict(start_level=0, end_level=-1),
        ),
        (
            dict(type='PAFPN', num_outs=3, start_level=1),
            (1, 2, 3),
            dict(start_level=0),
        ),
        (dict(type='NoSuchNeck'), (0, 1, 2, 3), {}),
    ],
)
def test_levels_that_a_neck_reads_are_measured(neck, read, changed):
    import_toolbox('mmdet')
    levels = Levels((4, 8, 16, 32), (4, 8, 12, 16))
    neck = dict(neck, in_channels=[4, 8, 12, 16], out_channels=8)
    model = ConfigDict(neck=neck)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert levels_read(model, levels) == read
    assert model.neck == neck
    assert leave_out(model, levels, read).strides == tuple(
        levels.strides[i] for i in read
    )
    assert {k: model.neck[k] for k in changed} == changed
    assert len(model.neck.in_channels) == len(read)


# Models inside wrappers.

NET = dict(type='EncoderDecoder', backbone=dict(type='ResNet'))
TEACHER = dict(type='Large', backbone=dict(type='ViT'))


@pytest.mark.parametrize(
    ('model', 'place'),
    [
        (NET, ()),
        (dict(type='Semi', segmentor=NET), ('segmentor',)),
        (dict(type='Semi', detector=NET), ('detector',)),
        (dict(type='Distill', student=NET, teacher=TEACHER), ('student',)),
        (dict(type='Distill', architecture=NET, teacher=TEACHER),
         ('architecture',)),
        (dict(type='Tta', module=dict(type='X', model=NET)),
         ('module', 'model')),
        (dict(NET, teacher=TEACHER), ()),
    ],
)  # fmt: skip
def test_model_is_found_inside_its_wrapper(model, place):
    cfg = Config(dict(model=model))
    expected = cfg.model
    for key in place:
        expected = expected[key]
    assert find_model(cfg) is expected


def test_two_models_without_a_teacher_are_ambiguous():
    cfg = Config(dict(model=dict(type='Pair', one=NET, two=NET)))
    with pytest.raises(ConfigError, match=r'several .*model\.one, model\.two'):
        find_model(cfg)


def test_segmentor_inside_a_wrapper_is_swapped():
    cfg = load_config(FCN)
    cfg.model = dict(
        type='Wrapper', segmentor=cfg.model, teacher=dict(cfg.model)
    )
    cfg = swap_backbone(cfg, 'efficientmod_xxs')
    assert cfg.model.segmentor.backbone.arch == 'xxs'
    assert cfg.model.segmentor.decode_head.in_channels == 256
    assert cfg.model.teacher.backbone.type == 'ResNetV1c'
    with DefaultScope.overwrite_default_scope('mmseg'):
        MODELS.build(cfg.model.segmentor)
