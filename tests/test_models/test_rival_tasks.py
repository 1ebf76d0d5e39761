"""The other backbones in our tasks: training, predicting, options."""

import gc

import pytest
import stock
import timm
import torch
from helpers import ROOT
from rivals import FIGURES, SMALL_ENOUGH, assert_loaded, build, perturb

from mmefficientmod import swap_backbone
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.config.files import load_config

FPN = str(ROOT / 'configs/seg/fpn_efficientmod_s_ade20k.py')
MASK_RCNN = str(ROOT / 'configs/det/mask_rcnn_efficientmod_s_fpn_1x_coco.py')
CAFFE = 'mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
pytestmark = pytest.mark.usefixtures('probed_once')


@pytest.fixture
def free_models():
    """Collect whole detectors: they are in reference cycles."""
    yield
    gc.collect()


def swap(config, name, **kwargs):
    return swap_backbone(load_config(config), name, **kwargs)


# Backbones of our own code, which have their own tests.
OWN = ('edgevit_xxs', 'edgevit_xs', 'edgevit_s', 'mbconv_xs', 'mbconv_s')
# Each family is tested in one task; the other task is slow.
DETECT = {
    'mobilevitv2_100', 'efficientformerv2_s0', 'repvit_m0_9', 'poolformer_s12',
    'mbconv_xs',
}  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        pytest.param(
            name,
            config,
            marks=() if name in fast else pytest.mark.slow,
            id=f'{task}-{name}',
        )
        for task, config, fast in (
            ('fpn', FPN, {*SMALL_ENOUGH, 'edgevit_xxs'} - DETECT),
            ('mask_rcnn', MASK_RCNN, DETECT),
        )
        for name in (*FIGURES, *OWN)
    ],
)
def test_segmentors_and_detectors_train_and_predict(name, config, free_models):
    logs, grads, predictions = stock.train_step_and_predict(config, name)
    for key, value in logs.items():
        assert torch.isfinite(torch.as_tensor(value)).all(), key
    assert len(grads) > 40
    for key, grad in grads.items():
        assert grad is not None, key
        assert torch.isfinite(grad).all(), key
    assert len(predictions) == 2


@pytest.mark.parametrize('name', ['focalnet_tiny_lrf', 'poolformer_s12'])
def test_classifiers_train_and_predict(name, free_models):
    cfg = swap(RESNET, name)
    assert cfg.model.head.in_channels == FIGURES[name][0][-1]
    logs, grads, predictions = stock.train_step_and_predict(RESNET, name)
    assert logs['loss'].isfinite()
    for key, grad in grads.items():
        assert grad is not None, key
    assert len(predictions) == 2
    normed = any(key.startswith('backbone.timm_model.norm') for key in grads)
    assert normed == (name == 'focalnet_tiny_lrf')


def test_images_are_normalised_as_the_weights_expect():
    for config in CAFFE, MASK_RCNN:
        inputs = swap(config, 'mobilevit-s').model.data_preprocessor
        assert (inputs.mean, inputs.std) == ([0.0] * 3, [255.0] * 3)
        assert inputs.bgr_to_rgb is True
    inputs = swap(RESNET, 'mobilevit_s').data_preprocessor
    assert inputs.std == [255.0] * 3
    ours = load_config(MASK_RCNN).model.data_preprocessor
    for name in 'repvit_m1_1', 'van_tiny':
        inputs = swap(CAFFE, name).model.data_preprocessor
        assert (inputs.mean, inputs.std) == (ours.mean, ours.std)
        assert inputs.bgr_to_rgb is True


def test_pretrained_weights_set_their_options(tmp_path):
    """Options that need pretrained weights, such as frozen stages."""
    library = perturb(timm.create_model('repvit_m0_9'))
    torch.save(library.state_dict(), tmp_path / 'c.pth')
    stock_config = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    cfg = swap(stock_config, 'repvit_m0_9', pretrained=tmp_path / 'c.pth')
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.model.backbone.norm_eval is True
    model = stock.build(cfg).train()
    assert_loaded(model.backbone, library.state_dict())
    assert not model.backbone.timm_model.stages[0].training
    assert model.backbone.timm_model.stages[1].training
    # VAN counts frozen stages from 0, so ResNet's option is not taken over.
    torch.save(build('van_tiny').state_dict(), tmp_path / 'c.pth')
    cfg = swap(stock_config, 'van_tiny', pretrained=tmp_path / 'c.pth')
    assert 'frozen_stages' not in cfg.model.backbone
    assert cfg.model.backbone.norm_eval is True
    (tmp_path / 'c.pth').write_bytes(b'')
    cfg = swap(stock_config, 'repvit_m0_9', pretrained=tmp_path / 'c.pth')
    with pytest.raises(CheckpointError, match='is empty'):
        stock.build(cfg)
